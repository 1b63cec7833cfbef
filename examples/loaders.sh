#!/bin/sh
# Loads datasets of every format with the libraries that own it, unedited and from another working folder, and compares
# the masks, images, categories and counts that they read with those written. Prints a table for benchmarks/README.md
# and ends with 1 if anything differs, or cannot be installed.
#
#   sh examples/loaders.sh [FOLDER [OWNER...]]
#
# Each owner gets an environment of its own in FOLDER/env (default: a temporary folder, removed at the end); those that
# are there are used again. All of them take 15 GB and half an hour. PYTHON makes the environments and draws the images,
# with NumPy and Pillow (default: python3); DEFECTGEN is the command (default: defectgen).
set -u
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-}
[ $# -gt 0 ] && shift
owners=${*:-pycocotools torchvision datumaro fiftyone supervision label-studio ultralytics anomalib datasets}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder/env" || exit 2
folder=$(cd "$folder" && pwd)
failed=0

packages() {
    case $1 in
        pycocotools) echo pycocotools numpy pillow ;;
        torchvision) echo torchvision pycocotools ;;
        fiftyone) echo fiftyone pycocotools ;; # it asks for this when it reads COCO
        label-studio) echo label-studio-converter ;;
        *) echo "$1" ;;
    esac
}

# What each owner reads: its reader, the dataset and the least IoU. Owners that fill polygons by whole pixels draw the
# lines of zero width that join the pieces of a YOLO row one pixel wide; supervision also rounds all corners. These
# datasets have small defects, of which one pixel is a large part.
reads() {
    case $1 in
        pycocotools) printf '%s\n' "coco coco-auto 1" "coco coco-polygon 1" "coco coco-rle 1" ;;
        torchvision) printf '%s\n' "coco coco-auto 1" "coco coco-rle 1" ;;
        datumaro) printf '%s\n' "coco coco-auto 1" "coco coco-polygon 1" "coco coco-rle 1" ;;
        fiftyone) printf '%s\n' "coco coco-auto 1" "coco coco-rle 1" "yolo yolo .5" "yolo yolo-pieces 1" ;;
        supervision) printf '%s\n' "coco coco-rle 1" "coco coco-auto .3" "yolo yolo .3" ;;
        label-studio) printf '%s\n' "coco coco-polygon 1" ;;
        ultralytics) printf '%s\n' "yolo yolo .5" "yolo yolo-pieces 1" ;;
        anomalib) printf '%s\n' "mvtec mvtec 1" "folder mvtec 1" ;;
        datasets) printf '%s\n' "plain plain 1" ;;
        *) echo "unknown owner $1: choose from pycocotools torchvision datumaro fiftyone supervision label-studio" \
            "ultralytics anomalib datasets" >&2; exit 2 ;;
    esac
}

for owner in $owners; do
    reads "$owner" > /dev/null
done

# --- Datasets: with ASCII names, and with names that need quotes, escapes or other letters.
python=${PYTHON:-python3}
rm -rf "$folder/data"
mkdir "$folder/data"
cd "$folder/data" || exit 2
"$python" "$here/loaders.py" draw ascii ring spots line || exit 2
"$python" "$here/loaders.py" draw awkward "Riß's: \"x\"" "blow hole" "ひび, #1" || exit 2
for names in ascii awkward; do
    for format in plain mvtec yolo "yolo --instances pieces" "coco --segmentation auto" "coco --segmentation polygon" \
        "coco --segmentation rle"; do
        kind=$(echo "$format" | sed 's/ --[a-z]* /-/')
        case $kind in coco*) more="--normals-share 0.1" ;; *) more= ;; esac
        # shellcheck disable=SC2086 # the options are words
        ${DEFECTGEN:-defectgen} compose $names/defects $names/normals -n 36 --per-image 1:2 --format $format $more \
            --out "$names-$kind" --quiet > /dev/null || exit 2
    done
done

# --- Owners, each in its environment, from the root folder: no path may depend on the working folder.
export HOME="$folder/home" YOLO_CONFIG_DIR="$folder/home" YOLO_OFFLINE=1 HF_HUB_OFFLINE=1
mkdir -p "$HOME"
cd / || exit 2
echo "| loader | dataset | images | with defects | IoU, least | IoU, mean | |"
echo "|---|---|---|---|---|---|---|"
for owner in $owners; do
    env="$folder/env/$owner"
    if [ ! -x "$env/bin/pip" ]; then
        # shellcheck disable=SC2046 # several packages
        { "$python" -m venv "$env" && "$env/bin/pip" install --quiet $(packages "$owner"); } > "$folder/$owner.log" 2>&1 || {
            echo "| $owner | | | | | | NO: cannot be installed, see $folder/$owner.log |"
            rm -rf "$env"
            failed=1
            continue
        }
    fi
    reads "$owner" > "$folder/reads"
    while read -r format kind least; do
        for names in ascii awkward; do
            "$env/bin/python" "$here/loaders.py" "$owner" "$format" "$folder/data/$names-$kind" "$least" \
                > "$folder/line" 2> "$folder/$owner-$names-$kind.log" || failed=1
            grep '^| ' "$folder/line" ||
                echo "| $owner | $names-$kind | | | | | NO: see $folder/$owner-$names-$kind.log |"
        done
    done < "$folder/reads"
done
exit $failed
