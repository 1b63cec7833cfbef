"""From a folder of images to labeled defects, cell by cell. Open it in VS Code or Jupyter (jupytext), or run it.

Run it in the root of this repository: `python examples/notebook.py`. It writes to `demo/`.
"""

# %% The images: normals, and a few defects with their masks
from pathlib import Path

import defectgen

STEPS = 600  # of training: ten minutes on one CPU core. Real training takes an hour or more
SAMPLES, OUT = Path("examples/samples/steel"), Path("demo")
part = defectgen.ProductFolders(product="steel", normals=SAMPLES / "normals", defects=SAMPLES / "defects")
catalog = defectgen.read_catalog([part])
print(f"{len(catalog.images)} images, categories: {', '.join(catalog.categories)}")

# %% Cut-outs of the real defects blended into normals, without training. Look at demo/composed/sheet.jpg
job = defectgen.prepare_composition(
    defectgen.ComposeRequest(
        num=24,
        defects=SAMPLES / "defects",
        normals=SAMPLES / "normals",
        placement=defectgen.Placement(rotation=(-10, 10)),
    )
)
result = defectgen.write(job, defectgen.DatasetRequest(out=OUT / "composed", overwrite=True))
print(f"{result.written} samples; look at {result.sheet}")

# %% The same, one sample at a time, without writing files
for sample in defectgen.compose(
    defectgen.ComposeRequest(num=3, defects=SAMPLES / "defects", normals=SAMPLES / "normals")
):
    print(sample.category, sample.image.shape, f"{sample.mask.sum()} pixels of defect")

# %% Train a model that generates new defects. Look at demo/runs/steel/previews
trained = defectgen.train(
    defectgen.TrainRequest(
        method="dt-gan", sources=(part,), preset="tiny", steps=STEPS, name="steel", out=OUT / "runs",
        weights=OUT / "weights.toml", overwrite=True,
    ),
    lambda progress: print(f"\r{progress.step} of {progress.steps}", end=""),
)  # fmt: skip
print(f"\n{trained.name} knows {', '.join(trained.categories)}")

# %% Samples of the model
request = defectgen.SynthesizeRequest(num=12, model="steel", weights=OUT / "weights.toml")
samples = defectgen.synthesize(request)
for sample in samples:
    print(sample.category, f"{sample.mask.sum()} pixels of defect")
print(f"{len(samples.failed)} of {len(samples)} failed; if these are many, train longer")
