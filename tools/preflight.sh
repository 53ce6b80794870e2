#!/bin/sh
# Says in one line what this machine lacks for the set-up. Usage: preflight.sh PYTHON [said]: .venv must be of it
python=$1
fail() { printf 'cannot set up: %s\n' "$1" >&2; exit 1; }

case $PWD in *[[:cntrl:]:{}\"\`\$\\]*)
    fail "'$PWD' has one of : { } \" \` \$ \\ in it, which tools of Python take for their own: move the folder" ;;
esac

command -v "$python" >/dev/null 2>&1 || fail "no '$python' here: install Python 3.11 or newer, or say make PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "'$python' is $("$python" -V 2>&1), Python 3.11 or newer is needed: make PYTHON=/path/to/python"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "'$python' has no venv module: on Debian and Ubuntu, apt-get install python3-venv"
old=$(.venv/bin/python -V 2>/dev/null)
[ -z "$2" ] || [ -z "$old" ] || [ "$old" = "$("$python" -V)" ] ||
    fail "'$python' is $("$python" -V), .venv has $old: remove .venv, or take another clone"
made=$(cat .venv/.book 2>/dev/null)
[ -z "$made" ] || [ "$made" -ef . ] || fail "this checkout was moved or copied from $made, which .venv has in it: remove .venv"
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge 4 ] || fail "$free GiB are free here, 4 are needed (PyTorch is large)"
