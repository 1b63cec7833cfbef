"""Reads datasets of defectgen with one other library, and compares what it reads with the masks. See loaders.sh.

python loaders.py draw FOLDER CATEGORY CATEGORY CATEGORY     draws normals, and defects with holes and pieces
python loaders.py OWNER FORMAT DATASET [LEAST_IOU]           prints a line of the table; 1 if anything differs
"""

# Each owner's environment has that owner alone, so each is imported where it is used.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found, import-untyped"

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.bool_]
Found = dict[str, list[tuple[Mask, str | None]]]
"""By the image's path, its annotations: the mask of each and its category, if the loader has it."""
Truth = dict[str, tuple[Mask, str | None, int]]
"""By the image's path: its mask, its category and its number of annotations; normals have none."""


def draw(folder: str, names: Sequence[str]) -> None:
    """Twelve normals, and six defects each of rings, spots in several pieces, and thin lines."""
    rng = np.random.default_rng(0)

    def ground() -> NDArray[np.uint8]:
        return np.asarray(rng.normal(130, 4, (160, 200)).clip(0, 255), np.uint8)

    def save(pixels: NDArray[np.uint8], *parts: str) -> None:
        path = Path(folder, *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i in range(12):
        save(ground(), "normals", f"{i}.png")
    for kind, name in enumerate(names):
        for i in range(6):
            mask = Image.new("L", (200, 160))
            pen = ImageDraw.Draw(mask)
            x, y = rng.integers(50, 110, 2).tolist()
            if kind == 0:
                pen.ellipse((x - 16, y - 12, x + 16 + i, y + 12), fill=255)
                pen.ellipse((x - 8, y - 5, x, y + 5), fill=0)
                pen.ellipse((x + 4, y - 3, x + 10, y + 3), fill=0)
            elif kind == 1:
                for dx, dy, r in ((0, 0, 6), (11, 3, 3), (-9, 8, 2), (4, 14, 4)):
                    pen.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=255)
            else:
                pen.line((x - 20, y - i, x, y + 6, x + 22, y + i), fill=255, width=1 + i // 3)
            marked = np.asarray(mask) > 0
            image = ground()
            image[marked] = (image[marked] * 0.5).astype(np.uint8)
            save(image, "defects", name, f"{i}.png")
            save(marked.astype(np.uint8) * 255, "masks", name, f"{i}.png")


def truth(root: Path) -> Truth:
    """What a dataset should be read as, by its manifest and masks."""
    found: Truth = {}
    for line in (root / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        mask = np.asarray(Image.open(root / row["mask"])) > 0
        defects = max(row.get("instances") or [0]) + 1
        found[row["image"]] = (mask, row["category"], len(row["boxes"]) if root.name.endswith("-pieces") else defects)
    for name in json.loads((root / "dataset.json").read_text(encoding="utf-8")).get("normals", ()):
        width, height = Image.open(root / name).size
        found[name] = (np.zeros((height, width), bool), None, 0)
    return found


def key(root: Path, path: str | Path) -> str:
    return Path(path).resolve().relative_to(root.resolve()).as_posix()


def coco_files(root: Path) -> list[Path]:
    return sorted((root / "annotations").glob("instances_*.json"))


def pycocotools_coco(root: Path) -> Found:
    from pycocotools.coco import COCO

    found: Found = {}
    for file in coco_files(root):
        coco = COCO(str(file))
        for image in coco.imgs.values():
            found[f"images/{image['file_name']}"] = [
                (coco.annToMask(each).astype(bool), coco.cats[each["category_id"]]["name"])
                for each in coco.imgToAnns[image["id"]]
            ]
    return found


def torchvision_coco(root: Path) -> Found:
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

    found: Found = {}
    for file in coco_files(root):
        plain = CocoDetection(str(root / "images"), str(file))
        names = {number: each["name"] for number, each in plain.coco.cats.items()}
        wrapped = wrap_dataset_for_transforms_v2(plain, target_keys=("masks", "labels", "image_id"))
        for image, target in wrapped:
            name = plain.coco.imgs[target["image_id"]]["file_name"]
            pairs = zip(target.get("masks", ()), target.get("labels", ()), strict=True)
            found[f"images/{name}"] = [(mask.numpy().astype(bool), names[int(label)]) for mask, label in pairs]
            assert image.size == Image.open(root / "images" / name).size
    return found


def datumaro_coco(root: Path) -> Found:
    from datumaro import Dataset
    from datumaro.components.annotation import AnnotationType
    from pycocotools import mask as coco_mask

    dataset = Dataset.import_from(str(root), "coco_instances")
    labels = dataset.categories()[AnnotationType.label]
    found: Found = {}
    for item in dataset:
        height, width = item.media.size
        groups: dict[int, list[Any]] = {}  # the polygons of an annotation have one
        for each in item.annotations:
            if each.type == AnnotationType.polygon:
                (lengths,) = coco_mask.frPyObjects([each.points], height, width)
                mask = coco_mask.decode(lengths).astype(bool)
            elif each.type == AnnotationType.mask:
                mask = each.image.astype(bool)
            else:  # boxes, of the same annotations
                continue
            group = groups.setdefault(each.group, [np.zeros((height, width), bool), labels[each.label].name])
            group[0] |= mask
        found[key(root, item.media.path)] = [(mask, name) for mask, name in groups.values()]
    return found


def fiftyone_coco(root: Path) -> Found:
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    found: Found = {}
    for file in coco_files(root):
        importer = COCODetectionDatasetImporter(
            data_path=str(root / "images"), labels_path=str(file), label_types=["segmentations"]
        )
        with importer:
            for path, metadata, labels in importer:
                found[key(root, path)] = _of_fiftyone(labels, metadata.width, metadata.height)
    return found


def _of_fiftyone(labels: Any, width: int, height: int) -> list[tuple[Mask, str | None]]:
    found: list[tuple[Mask, str | None]] = []
    for each in [] if labels is None else getattr(labels, "detections", []):
        x, y = round(each.bounding_box[0] * width), round(each.bounding_box[1] * height)
        mask = np.zeros((height, width), bool)
        mask[y : y + each.mask.shape[0], x : x + each.mask.shape[1]] = each.mask
        found.append((mask, each.label))
    for each in [] if labels is None else getattr(labels, "polylines", []):
        mask = _filled([np.array(line) * (width, height) for line in each.points], (height, width))
        found.append((mask, each.label))
    return found


def _filled(lines: Iterable[NDArray[Any]], shape: tuple[int, int]) -> Mask:
    """Polygons in pixels, as OpenCV fills them."""
    import cv2

    mask = np.zeros(shape, np.uint8)
    for line in lines:
        cv2.fillPoly(mask, [np.asarray(line).astype(np.int32)], 1)
    return mask.astype(bool)


def fiftyone_yolo(root: Path) -> Found:
    from fiftyone.utils.yolo import YOLOv5DatasetImporter

    found: Found = {}
    for split in ("train", "val"):
        importer = YOLOv5DatasetImporter(yaml_path=str(root / "data.yaml"), split=split, label_type="polylines")
        with importer:
            for path, _, labels in importer:
                found[key(root, path)] = _of_fiftyone(labels, *Image.open(path).size)
    return found


def _of_supervision(root: Path, dataset: Any) -> Found:
    found: Found = {}
    for path, image, detections in dataset:
        names = [dataset.classes[number] for number in detections.class_id] if len(detections) else []
        masks = [] if detections.mask is None else detections.mask
        found[key(root, path)] = list(zip(masks, names, strict=True))
        assert image.shape[:2] == np.asarray(Image.open(path)).shape[:2]
    return found


def supervision_coco(root: Path) -> Found:
    import supervision

    found: Found = {}
    for file in coco_files(root):
        dataset = supervision.DetectionDataset.from_coco(str(root / "images"), str(file), force_masks=True)
        found |= _of_supervision(root, dataset)
    return found


def supervision_yolo(root: Path) -> Found:
    import supervision

    found: Found = {}
    for split in ("train", "val"):
        dataset = supervision.DetectionDataset.from_yolo(
            str(root / "images" / split), str(root / "labels" / split), str(root / "data.yaml"), force_masks=True
        )
        found |= _of_supervision(root, dataset)
    return found


def ultralytics_yolo(root: Path) -> Found:
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(root / "data.yaml"))
    found: Found = {}
    for split in ("train", "val"):
        dataset = YOLODataset(img_path=data[split], data=data, task="segment", augment=False)
        for label in dataset.labels:
            height, width = label["shape"]
            found[key(root, label["im_file"])] = [
                (_filled([line * (width, height)], (height, width)), data["names"][int(number)])
                for line, number in zip(label["segments"], label["cls"][:, 0], strict=True)
            ]
    return found


def _of_anomalib(root: Path, dataset: Any) -> Found:
    found: Found = {}
    for item in dataset:
        mask = np.zeros(0) if item.gt_mask is None else np.asarray(item.gt_mask)
        found[key(root, item.image_path)] = (
            [(mask.reshape(mask.shape[-2:]).astype(bool), None)] if item.gt_label else []
        )
    return found


def anomalib_mvtec(root: Path) -> Found:
    from anomalib.data.datasets.image.mvtecad import MVTecADDataset

    (product,) = [path.name for path in root.iterdir() if path.is_dir()]
    found: Found = {}
    for split in ("train", "test"):
        found |= _of_anomalib(root, MVTecADDataset(root=root, category=product, split=split))
    return found


def anomalib_folder(root: Path) -> Found:
    from anomalib.data.datasets.image.folder import FolderDataset

    (product,) = [path for path in root.iterdir() if path.is_dir()]
    names = sorted(path.name for path in (product / "ground_truth").iterdir())
    found: Found = {}
    for split in ("train", "test"):
        dataset = FolderDataset(
            name="parts", root=product, normal_dir="train/good", normal_test_dir="test/good",
            abnormal_dir=[f"test/{name}" for name in names], mask_dir=[f"ground_truth/{name}" for name in names],
            split=split,
        )  # fmt: skip
        found |= _of_anomalib(root, dataset)
    return found


def labelstudio_coco(root: Path) -> Found:
    from label_studio_converter.imports.coco import convert_coco_to_ls

    found: Found = {}
    for file in coco_files(root):
        out = root.parent / f"{root.name}_{file.stem}_tasks.json"
        convert_coco_to_ls(str(file), str(out), image_root_url="images")
        for image in json.loads(file.read_text(encoding="utf-8"))["images"]:
            found[f"images/{image['file_name']}"] = []
        for task in json.loads(out.read_text(encoding="utf-8")):
            image = Image.open(root / task["data"]["image"])
            for each in task["annotations"][0]["result"]:
                if each["type"] == "polygonlabels":
                    line = np.array(each["value"]["points"]) / 100 * image.size
                    mask = _even_odd(line, image.size)
                    found[task["data"]["image"]].append((mask, each["value"]["polygonlabels"][0]))
    return found


def _even_odd(line: NDArray[np.float64], size: tuple[int, int]) -> Mask:
    """A polygon by the even-odd rule at the centers of pixels: the editor draws it, the converter has no raster."""
    ys, xs = np.mgrid[: size[1], : size[0]] + 0.5
    inside = np.zeros(xs.shape, bool)
    for (x0, y0), (x1, y1) in zip(line, np.roll(line, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 <= ys) != (y1 <= ys)) & (xs < x0 + (ys - y0) * (x1 - x0) / (y1 - y0))
    return inside


def datasets_plain(root: Path) -> Found:
    from datasets import Image as Column
    from datasets import load_dataset

    table = load_dataset("imagefolder", data_dir=str(root), split="train", cache_dir=str(root.parent / "cache"))
    paths = table.cast_column("image", Column(decode=False))
    found: Found = {}
    for row, path in zip(table, paths, strict=True):
        found[key(root, path["image"]["path"])] = [(np.asarray(row["mask"]) > 0, row["category"])]
        assert row["image"].size == row["mask"].size
    return found


OWNERS: dict[tuple[str, str], tuple[str, Callable[[Path], Found]]] = {
    ("pycocotools", "coco"): ("pycocotools", pycocotools_coco),
    ("torchvision", "coco"): ("torchvision", torchvision_coco),
    ("datumaro", "coco"): ("datumaro", datumaro_coco),
    ("fiftyone", "coco"): ("fiftyone", fiftyone_coco),
    ("fiftyone", "yolo"): ("fiftyone", fiftyone_yolo),
    ("supervision", "coco"): ("supervision", supervision_coco),
    ("supervision", "yolo"): ("supervision", supervision_yolo),
    ("ultralytics", "yolo"): ("ultralytics", ultralytics_yolo),
    ("anomalib", "mvtec"): ("anomalib", anomalib_mvtec),
    ("anomalib", "folder"): ("anomalib", anomalib_folder),
    ("label-studio", "coco"): ("label-studio-converter", labelstudio_coco),
    ("datasets", "plain"): ("datasets", datasets_plain),
}


def compare(wanted: Truth, found: Found, *, instances: bool) -> tuple[float, float, list[str]]:
    """The least and mean IoU of an image's mask, and what else differs."""
    faults = list[str]()
    if set(wanted) != set(found):
        faults.append(f"{len(found)} images instead of {len(wanted)}")
    ious = []
    for name in sorted(set(wanted) & set(found)):
        mask, category, count = wanted[name]
        read = found[name]
        got = np.any([each for each, _ in read], axis=0) if read else np.zeros_like(mask)
        if got.shape != mask.shape:
            faults.append(f"{name}: {got.shape} instead of {mask.shape}")
            continue
        if mask.any():
            ious.append((got & mask).sum() / (got | mask).sum())
        elif got.any():
            faults.append(f"{name}: a mask on a normal")
        labels = {label for _, label in read}
        if labels - {None, category}:
            faults.append(f"{name}: {labels} instead of {category!r}")
        if instances and len(read) != count:
            faults.append(f"{name}: {len(read)} annotations instead of {count}")
    return min(ious, default=0.0), float(np.mean(ious or [0])), faults


def main() -> int:
    if sys.argv[1] == "draw":
        draw(sys.argv[2], sys.argv[3:])
        return 0
    owner, kind, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    least = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
    package, read = OWNERS[owner, kind]
    wanted = truth(root)
    try:
        found = read(root)
        lowest, mean, faults = compare(wanted, found, instances=kind in ("coco", "yolo"))
        counts = Counter(bool(each) for each in found.values())
        read_as = f"{len(found)} | {counts[True]} | {lowest:.4f} | {mean:.4f}"
    except Exception as error:
        lowest, faults, read_as = 0.0, [f"{type(error).__name__}: {error}".replace("\n", " ")[:200]], "- | - | - | -"
    if not faults and lowest < least:
        faults.append(f"IoU below {least:g}")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    verdict = f"NO: {faults[0]}{more}" if faults else "ok" if least == 1 else "ok, lossy"
    print(f"| {package} {version(package)} | {root.name}{' as Folder' * (kind == 'folder')} | {read_as} | {verdict} |")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
