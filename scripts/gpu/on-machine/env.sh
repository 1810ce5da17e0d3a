# shellcheck shell=bash
# Unpacks the bundle and finds CUDA's libraries. The other scripts in this folder source it.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${TINY_CATS_PYTHON:-python3}
# The folder for the programs; set TINY_CATS_WORK if this folder is read-only.
work=${TINY_CATS_WORK:-$here/unpacked}
if [ ! -e "$work/tiny-cats" ]; then
  mkdir -p "$work"
  "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2], filter="data")' "$here/bundle.tar.xz" "$work"
fi
# The folders of CUDA libraries in Python packages, such as nvidia/cu13/lib.
libraries=$("$python" -c '
import glob, site, sysconfig
packages = sorted({*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")})
print(":".join(folder for p in packages for folder in sorted(glob.glob(p + "/nvidia/*/lib"))))')
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
