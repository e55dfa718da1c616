#!/usr/bin/env bash
# headers.sh ROOT COMPILER...: every public header compiles alone, without a warning, as C99, C11 and C++17 with each C
# compiler (which compile C++ as well when told so).
set -euo pipefail
root=$1
shift
failed=0
count=0
warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror)
for compiler in "$@"; do
  for header in "$root"/include/tandem/*.h; do
    name=tandem/$(basename "$header")
    for standard in c99 c11 c++17; do
      language=c
      [[ $standard == c++* ]] && language=c++
      count=$((count + 1))
      # Twice, so that the include guard is seen to work.
      if ! printf '#include "%s"\n#include "%s"\nextern int unused;\n' "$name" "$name" |
        "$compiler" -x "$language" -std="$standard" "${warnings[@]}" -I "$root/include" -fsyntax-only -; then
        echo "$name does not compile alone: $compiler -std=$standard"
        failed=$((failed + 1))
      fi
    done
  done
done
echo "$count compilations, $failed failed"
((count > 0 && failed == 0))
