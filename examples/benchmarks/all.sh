#!/bin/sh
# Measures `compose` and every method on folders of real images, each with normals, defects and masks:
#     sh examples/benchmarks/all.sh DATA [DATA ...] >page.md
# Three fifths of the images are for training, the first five defects of each category for the generators; the rest is the
# test. Called again, it continues where it stopped. Set OUT (results), TIME (20m) that each method trains, NUM (200)
# samples, SEEDS (5), SHOTS (5,all), SHARE (chosen by cross-validation) and METHODS to change what is in parentheses.
# Prints tables in Markdown, messages elsewhere. On two CPU cores it takes the whole TIME of each method, and some two
# hours of `evaluate` for each folder.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-results} num=${NUM:-200} seeds=${SEEDS:-5} shots=${SHOTS:-5,all}
methods=${METHODS:-dt-gan defect-gan dcdganc dfmgan isu-gan} share=${SHARE:-}

made() { # NAME COMMAND...: makes a dataset; notes the seconds, unless it was interrupted, or that there are no defects
    name=$1 began=$(date +%s) whole=yes code=0
    shift
    [ ! -e "$name" ] || whole=
    defectgen "$@" --num "$num" --seed 1 --resume --out "$name" >&2 || code=$?
    case $code in
    0 | 3) [ -z "$whole" ] || echo $(($(date +%s) - began)) >"$name.seconds" ;; # 3: a few samples failed
    5) touch "$name.nothing" ;;
    *) exit "$code" ;;
    esac
}

measured() { # SUFFIX OPTION DATASET...: what datasets look like, and whether they help
    suffix=$1 option=$2
    shift 2
    # shellcheck disable=SC2086 # the option may be missing
    [ -e "quality$suffix.json" ] || python "$here/quality.py" dev "$@" $option --json "quality$suffix.json" >&2
    [ -e "report$suffix/report.json" ] || defectgen evaluate dev "$@" --test test --shots "$shots" --seeds "$seeds" \
        ${share:+--share "$share"} --resume --out "report$suffix" >&2
}

for data in "$@"; do
    folder=$out/$(basename "$data")
    python "$here/results.py" split "$data" "$folder"
    (
        cd "$folder"
        made compose compose five/defects dev/normals
        several=compose one=
        for method in $methods; do
            [ -e "runs/$method/model.safetensors" ] || defectgen train dev/normals five/defects --method "$method" \
                --time "${TIME:-20m}" --seed 1 --name "$method" --weights weights.toml --resume >&2
            [ -e "$method.nothing" ] ||
                made "$method" synthesize --model "$method" --weights weights.toml --normals dev/normals
            if [ -e "$method.nothing" ]; then continue; fi
            if [ "$method" = isu-gan ] && [ "$(find -L dev/defects -mindepth 1 -type d | wc -l)" -gt 1 ]; then
                one="compose $method"
            else
                several="$several $method"
            fi
        done
        # shellcheck disable=SC2086 # lists of names without spaces
        measured "" "" $several
        # shellcheck disable=SC2086
        [ -z "$one" ] || measured -one --one-category $one # its defects are all of one category
    )
done
for data in "$@"; do
    python "$here/results.py" page "$out/$(basename "$data")"
done
