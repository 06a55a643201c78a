#!/bin/sh
# Debian packages that some tests and benchmarks use as peers. Without root they are left out and those tests skip, saying so.
want=""
command -v cyclictest >/dev/null || want="$want rt-tests"
command -v picocom >/dev/null || want="$want picocom"
command -v minicom >/dev/null || want="$want minicom"
command -v tmux >/dev/null || want="$want tmux"
[ -e /usr/include/modbus/modbus.h ] || want="$want libmodbus-dev"
command -v candump >/dev/null || want="$want can-utils"
command -v mbpoll >/dev/null || want="$want mbpoll"
[ -z "$want" ] && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "not installed (needs root and apt-get):$want; the tests that use them skip"; exit 0; }
log=$(mktemp) || exit 0
{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $want; } >"$log" 2>&1 \
    || echo "apt-get failed for:$want (see $log); the tests that use them skip"
exit 0
