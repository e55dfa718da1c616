#!/usr/bin/env bash
# run.sh CMAKE BUILD_DIR SOURCE_DIR CC: installs the build below a temporary prefix, moves it, then builds and runs its users
# against nothing but that: C11 and C++17, shared and static, by find_package and by pkg-config; the README's snippet; and
# the examples folder as a project of its own.
set -euo pipefail
cmake=$1 build=$2 source=$3 cc=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "$(basename "$cc")" in
  *clang*) cxx=${cc/clang/clang++} ;;
  *) cxx=g++ ;;
esac
command -v "$cxx" >/dev/null || { echo "skipped: no C++ compiler ($cxx)"; exit 77; }

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
DESTDIR='' "$cmake" --install "$build" --prefix "$temp/first" >"$temp/install.log" || { cat "$temp/install.log"; exit 1; }
mv "$temp/first" "$temp/prefix"
prefix=$temp/prefix
[[ -f $prefix/include/tandem/tandem.h ]]
if grep -rlF -e "$source" -e "$build" -e "$temp/first" "$prefix" --include='*.cmake' --include='*.pc' --include='*.h'; then
  echo "the files above name a folder of this machine"
  exit 1
fi

echo "== find_package"
"$cmake" -S "$here" -B "$temp/build" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" \
  -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=Release >"$temp/log" || { cat "$temp/log"; exit 1; }
"$cmake" --build "$temp/build" >"$temp/log" || { cat "$temp/log"; exit 1; }
for program in c_tandem c_tandem_static cpp_tandem cpp_tandem_static; do
  echo -n "$program: "
  "$temp/build/$program"
done
if ldd "$temp/build/c_tandem_static" | grep -q libtandem; then
  echo "c_tandem_static needs the shared library"
  exit 1
fi

echo "== pkg-config"
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name tandem.pc)")
export PKG_CONFIG_PATH
libdir=$(pkg-config --variable=libdir tandem)
flags=(-Wall -Wextra -Wpedantic -Werror)
read -ra cflags < <(pkg-config --cflags tandem)
read -ra shared < <(pkg-config --libs tandem)
read -ra static < <(pkg-config --static --libs tandem)
static=("${static[@]/#-ltandem/-l:libtandem.a}")
awk '/^```c$/ {inside = 1; next} /^```/ {if (inside) exit} inside' "$source/README.md" >"$temp/readme.c"
[[ -s $temp/readme.c ]] || { echo "README.md has no C snippet"; exit 1; }
run() {
  echo -n "$1: "
  LD_LIBRARY_PATH=$libdir "$temp/$1"
}
"$cc" -std=c11 "${flags[@]}" "${cflags[@]}" "$here/consumer.c" -o "$temp/c_shared" "${shared[@]}"
"$cc" -std=c11 "${flags[@]}" "${cflags[@]}" "$here/consumer.c" -o "$temp/c_static" "${static[@]}"
"$cxx" -std=c++17 "${flags[@]}" "${cflags[@]}" "$here/consumer.cpp" -o "$temp/cpp_shared" "${shared[@]}"
"$cc" -std=c11 "${flags[@]}" "${cflags[@]}" "$temp/readme.c" -o "$temp/readme" "${shared[@]}"
for program in c_shared c_static cpp_shared readme; do run "$program"; done

echo "== examples against the installed tree"
"$cmake" -S "$source/examples" -B "$temp/examples" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" \
  >"$temp/log" || { cat "$temp/log"; exit 1; }
"$cmake" --build "$temp/examples" >"$temp/log" || { cat "$temp/log"; exit 1; }
echo "built: $(find "$temp/examples" -maxdepth 1 -type f -perm -u+x -printf '%f ')"
