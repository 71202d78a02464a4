#!/bin/sh
# The client of fedtide @VERSION@ for @MACHINE@, with everything that it needs. As root: sh FILE
# (`sh FILE --help` says more). An archive follows the last line: python3 -m zipfile -l FILE
set -eu
all=@BYTES@
start=@START@
fail() {
  printf 'fedtide: error: %s\n\nhint: %s\n' "$1" "$2" >&2
  exit 2
}
[ -f "$0" ] || fail "the installer is not run from its file" "sh FILE, not through a pipe"
bytes=$(wc -c <"$0")
[ "$bytes" -eq "$all" ] || fail "the file is cut off: it has $bytes bytes of $all" "copy it again"
[ "$(tail -c "+$start" "$0" | sha256sum | cut -c 1-64)" = @DIGEST@ ] ||
  fail "the file is damaged: its digest is not the one that it was made with" "copy it again"
for python in python3 @COMMANDS@; do
  version=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  case " @PYTHONS@ " in
    *" $version "*) exec "$python" -I "$0" "$@" ;;
  esac
done
fail "this file is for Python @PYTHONS@; here is $(python3 --version 2>&1 || echo none)" \
  "64-bit Raspberry Pi OS 12 has 3.11 and 13 has 3.13; else make a file: fedtide server package --python X.Y"
