#!/usr/bin/env bash
# layers.sh ROOT: no include goes around the folder rule (docs/design.md, "Folders, and who may include whom").
set -euo pipefail
cd "$1"

declare -A sees=(
  [runtime]="tandem runtime"
  [kernels]="tandem runtime kernels"
  [graphs]="tandem runtime graphs"
  [moe]="tandem runtime kernels moe"
  [attention]="tandem runtime kernels attention"
  [models]="tandem runtime kernels moe attention graphs models"
  [include]="tandem"
  [examples]="tandem"
)
findings=0
say() {
  echo "$1"
  findings=$((findings + 1))
}

checked=0
for folder in "${!sees[@]}"; do
  while IFS= read -r file; do
    checked=$((checked + 1))
    while IFS=: read -r line include; do
      [[ $include =~ [\"\<]([^\">]*)[\"\>] ]]
      path=${BASH_REMATCH[1]}
      case "$path" in
        *..* | /* | ./*) say "$file:$line: includes \"$path\": a path inside the tree starts with its folder" ;;
      esac
      if [[ $include == *'"'* ]]; then
        top=${path%%/*}
        if [[ $folder == examples && $path != */* ]]; then continue; fi # a header of the example's own
        if [[ " ${sees[$folder]} " != *" $top "* ]]; then
          say "$file:$line: includes \"$path\", and $folder may include only: ${sees[$folder]}"
        fi
      elif [[ $include == *"<"* && $path =~ ^(runtime|kernels|graphs|moe|attention|models|tests)/ ]]; then
        say "$file:$line: includes <$path>: the project's own headers are included with quotes"
      fi
    done < <(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' "$file" || true)
  done < <(find "$folder" -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \))
done

echo "$checked files, $findings findings"
((checked > 0 && findings == 0))
