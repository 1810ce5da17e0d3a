# shellcheck shell=bash
# Unpacks what was packed and finds CUDA's libraries. To be sourced by its neighbours.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${TINY_CATS_PYTHON:-python3}
# Where the programs are; another folder where this one cannot be written to.
work=${TINY_CATS_WORK:-$here/unpacked}
if [ ! -e "$work/tiny-cats" ]; then
  mkdir -p "$work"
  "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2], filter="data")' "$here/bundle.tar.xz" "$work"
fi
# In packages of Python, where the system has none: nvidia/cu13/lib and the like.
libraries=$("$python" -c '
import glob, site, sysconfig
packages = sorted({*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")})
print(":".join(folder for p in packages for folder in sorted(glob.glob(p + "/nvidia/*/lib"))))')
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
