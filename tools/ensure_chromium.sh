#!/bin/sh
# Makes sure that the browser tests and make pdf find Chromium and its driver; installs Debian's packages where it may.
have() { command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; }

have && exit 0
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; else sudo=none; fi
    if [ "$sudo" != none ]; then
        echo "installing Chromium"
        $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null
        have && exit 0
    fi
fi
echo "the browser tests and make pdf need 'chromium' and 'chromedriver' on the PATH." >&2
echo "Debian: apt-get install chromium chromium-driver (as root). macOS: brew install --cask chromium chromedriver." >&2
exit 1
