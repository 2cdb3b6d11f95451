#!/bin/sh
# Sets up what proxyfw needs on Debian 12, 13 or Fedora, and then does the job. Run again, it is quick.
#
#   ./setup.sh demo        show it at work, in network namespaces of its own
#   ./setup.sh test        run the whole test suite
#   ./setup.sh install     only set up: the command is then .venv/bin/proxyfw
#   ./setup.sh local       only a private Python environment, without root: for `explicit: {listen: ...}`
#   ./setup.sh mitmproxy   the same with mitmproxy: for `proxyfw run --engine mitmproxy`
#   ./setup.sh qubes       on Qubes OS, with sudo: put it into this netvm, or into this template, to start at boot
#   ./setup.sh uninstall   take all of it away again (the configuration, the log and system packages stay)
set -eu
cd "$(dirname "$0")"
venv=.venv

say() { echo "setup: $*" >&2; }

usage() {
	sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
	exit "$1"
}

# Everything proxyfw does to packets needs root; so do the packages.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		say "this step needs root, and there is no sudo: run ./setup.sh as root"
		exit 2
	fi
}

# Package names that differ between the two families: Debian's, then Fedora's.
packages() {
	if command -v apt-get >/dev/null; then
		echo nftables python3-nftables python3-venv iproute2 procps curl openssl ca-certificates
		[ "$1" != test ] || echo nginx openssh-client openssh-server util-linux bind9-dnsutils chromium systemd conntrack shellcheck python3-jinja2 wireguard-tools wireguard-go git netcat-openbsd
	else
		echo nftables python3-nftables python3 iproute procps-ng curl openssl ca-certificates
		[ "$1" != test ] || echo nginx openssh-clients openssh-server util-linux bind-utils chromium systemd conntrack-tools ShellCheck python3-jinja2 wireguard-tools git netcat
	fi
}

installed() {
	if command -v dpkg-query >/dev/null; then
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
	else
		rpm -q --quiet "$1"
	fi
}

install_packages() {
	missing=
	for package in $(packages "$1"); do
		installed "$package" || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	say "root is needed to install:$missing"
	if command -v apt-get >/dev/null; then
		as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
		# A package that brings a server must not start it.
		as_root sh -c 'policy=/usr/sbin/policy-rc.d; [ -e $policy ] || { printf "#!/bin/sh\nexit 101\n" > $policy; chmod +x $policy; trap "rm -f $policy" EXIT; }
			DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"' sh $missing >&2
	elif command -v dnf >/dev/null; then
		as_root dnf install -q -y --setopt=install_weak_deps=False $missing >&2
	else
		say "neither apt nor dnf is here; install these by hand:$missing"
		exit 2
	fi
}

# The distribution's own Python: the one that python3-nftables was made for.
system_python() {
	for python in /usr/bin/python3 /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11; do
		if [ -x "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
			echo "$python"
			return
		fi
	done
	say "Python 3.11 or later is needed in /usr/bin"
	exit 2
}

# What is installed stands in $venv/.stamp-*: nothing is done again that would come out the same.
install_venv() {
	python=$(system_python)
	lock=$1
	# Where the system's Python has become another one, its packages are looked for in a folder that is not there.
	if ! "$venv/bin/python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("purelib"))' 2>/dev/null; then
		say "making a private Python environment in $venv"
		rm -rf "$venv"
		"$python" -m venv --system-site-packages "$venv"
	fi
	install_lock "$lock"
	want=$(find pyproject.toml proxyfw profiles iptables -type f ! -name '*.pyc' -exec sha256sum {} + | sort | sha256sum)
	if [ "$(cat "$venv/.stamp-proxyfw" 2>/dev/null)" != "$want" ]; then
		say "installing proxyfw"
		"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall . >&2
		echo "$want" > "$venv/.stamp-proxyfw"
	fi
}

# All that a lock names; --no-deps where the packages in it would not agree to it: the lock says why.
install_lock() {
	lock=$1
	shift
	want=$(cat "$lock" | sha256sum)
	if [ "$(cat "$venv/.stamp-$lock" 2>/dev/null)" != "$want" ]; then
		say "installing the pinned Python packages of $lock"
		"$venv/bin/pip" install -q --disable-pip-version-check "$@" --require-hashes -r "$lock" >&2
		echo "$want" > "$venv/.stamp-$lock"
	fi
}

case "${1:-}" in
demo)
	install_packages demo
	install_venv requirements.lock
	[ "$(id -u)" = 0 ] || say "root is needed to make network namespaces"
	shift
	as_root "$venv/bin/proxyfw" demo "$@"
	;;
test)
	install_packages test
	install_venv requirements-dev.lock
	install_lock requirements-mitmproxy.lock --no-deps
	[ "$(id -u)" = 0 ] || say "root is needed to make network namespaces"
	shift
	as_root "$venv/bin/pytest" "$@"
	;;
install)
	install_packages install
	install_venv requirements.lock
	say "done: $venv/bin/proxyfw --help"
	;;
local)
	install_venv requirements.lock
	say "done: $venv/bin/proxyfw --help"
	;;
mitmproxy)
	install_venv requirements.lock
	install_lock requirements-mitmproxy.lock --no-deps
	say "done: $venv/bin/proxyfw run --engine mitmproxy --help"
	;;
qubes)
	if [ "$(id -u)" != 0 ]; then
		say "root is needed to put proxyfw into this qube"
		as_root "./$(basename "$0")" qubes
		exit
	fi
	. qubes/install.sh
	qubes_install
	;;
uninstall)
	rm -rf "$venv"
	if command -v qubesdb-read >/dev/null; then
		as_root sh qubes/uninstall.sh
		exit
	fi
	say "$venv is gone. Rules that a running proxyfw left stay in force; to take them away:"
	say "  nft delete table inet proxyfw; for f in -4 -6; do ip \$f rule del priority 7300; ip \$f route flush table 7300; done"
	say "The log and the pins stay in its state_dir (/var/lib/proxyfw)."
	;;
-h | --help | help) usage 0 ;;
*) usage 2 ;;
esac
