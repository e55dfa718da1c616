# shellcheck shell=bash
# Helpers of the scripts in this folder: source it after `set -euo pipefail`.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
logs=$root/build/logs
mkdir -p "$logs"
cd "$root"

say() {
  printf '%s\n' "$*"
}

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

have() {
  command -v "$1" >/dev/null 2>&1
}

jobs() {
  nproc 2>/dev/null || echo 2
}

# nvcc often lies outside PATH.
find_nvcc() {
  local candidate
  for candidate in nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    if have "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# --- What must be installed -------------------------------------------------------------------------------------------

missing_packages=()
missing_reasons=()

# need PACKAGE REASON COMMAND...: notes PACKAGE as missing unless COMMAND succeeds.
need() {
  local package=$1 reason=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    missing_packages+=("$package")
    missing_reasons+=("$reason")
  fi
}

compiles() { # compiles COMPILER FLAGS...: a program builds with them
  local compiler=$1 out
  shift
  have "$compiler" || return 1
  out=$(mktemp)
  local status=0
  printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
    "$compiler" -x c "$@" -o "$out" - || status=$?
  rm -f "$out"
  return $status
}

cmake_is_recent() {
  local version
  have cmake || return 1
  version=$(cmake --version | sed -nE '1s/.* ([0-9]+\.[0-9]+).*/\1/p')
  [[ $(printf '3.25\n%s\n' "$version" | sort -V | head -1) == 3.25 ]]
}

need_build_tools() {
  need build-essential "gcc, g++ and the C library's headers" compiles gcc
  need cmake "configures the build (3.25 or later)" cmake_is_recent
  need ninja-build "runs the build" have ninja
  need pkg-config "finds the libraries" have pkg-config
  need libjansson-dev "reads config.json and safetensors headers" pkg-config --exists 'jansson >= 2.13'
}

# Installs what `need` noted, with apt-get. Where that is not possible, says what to install and ends the script.
install_missing() {
  ((${#missing_packages[@]} > 0)) || return 0
  local i as_root=()
  say "Missing on this machine:"
  for i in "${!missing_packages[@]}"; do
    printf '  %-18s %s\n' "${missing_packages[$i]}" "${missing_reasons[$i]}"
  done
  local by_hand="install them by hand: apt-get install ${missing_packages[*]}"
  have apt-get || die "apt-get is not there (this script installs on Debian and Ubuntu only); install the equivalents by hand"
  if [[ $(id -u) -ne 0 ]]; then
    have sudo || die "neither root nor sudo; $by_hand"
    if [[ ! -t 0 ]] && ! sudo -n true 2>/dev/null; then
      die "sudo asks for a password and there is no terminal; $by_hand"
    fi
    as_root=(sudo)
  fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive)
  say "Installing them with apt-get (log: ${logs#"$root"/}/apt.log) ..."
  # One broken list of a third party must not stop the install: only that one is judged.
  "${as_root[@]}" apt-get update >"$logs/apt.log" 2>&1 </dev/null || true
  if ! "${as_root[@]}" apt-get install -y --no-install-recommends "${missing_packages[@]}" >>"$logs/apt.log" 2>&1 </dev/null; then
    tail -n 5 "$logs/apt.log" >&2
    die "apt-get failed; $by_hand"
  fi
  missing_packages=()
  missing_reasons=()
}

# As install_missing, one by one, and what cannot be installed is only told: for tools whose tests are skipped without them.
install_optional() {
  local i packages=("${missing_packages[@]}") reasons=("${missing_reasons[@]}")
  for i in "${!packages[@]}"; do
    missing_packages=("${packages[$i]}")
    missing_reasons=("${reasons[$i]}")
    (install_missing) || say "Going on without ${packages[$i]}; the test that needs it is skipped."
  done
  missing_packages=()
  missing_reasons=()
}
