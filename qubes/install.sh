# shellcheck shell=sh
# What `./setup.sh qubes` does: puts proxyfw into this netvm, or into this template. Part of setup.sh.
. qubes/paths.sh

qubes_install() {
	persistence=$(qubesdb /qubes-vm-persistence)
	if [ -z "$persistence" ]; then
		say "this is not a qube of Qubes OS; elsewhere: ./setup.sh install"
		exit 2
	fi
	if [ "$persistence" = full ]; then
		install_in_template
	else
		install_in_app
	fi
}

install_in_app() {
	if [ -e "$services/custom-persist" ]; then
		say "this qube has the feature custom-persist: nothing of /rw/config is run at its boot, so proxyfw cannot be put here"
		say "put it into its template instead: there, sudo ./setup.sh qubes; then in dom0, qvm-service $(netvm) proxyfw on"
		exit 2
	fi
	if [ "$(qubesdb /type)" = DispVM ] || [ "$persistence" = none ]; then
		say "WARNING: this qube is disposable: its /rw, and proxyfw with it, is gone when it is shut down"
		say "WARNING: to keep it, install in the AppVM that is its template for disposables, or in that one's template"
	fi
	if [ ! -e "$services/qubes-firewall" ]; then
		say "WARNING: the service qubes-firewall is off here, and only it can close this netvm early at boot"
		say "WARNING: in dom0, qvm-service $(netvm) qubes-firewall on"
	fi
	install_packages install
	venv=$app_home/venv
	mkdir -p "$app_home"
	install_venv requirements.lock
	keep_nftables
	copy_programs "$app_home"
	sed -e '/^ConditionPathExists=/d' -e 's,/usr/lib/proxyfw,/rw/proxyfw,g' qubes/systemd/proxyfw.service > "$app_home/proxyfw.service"
	check_failsafe

	write_command "$app_command" '[ ! -e /run/qubes-service/proxyfw ] || [ ! -x /usr/lib/proxyfw/venv/bin/proxyfw ] || exec /usr/lib/proxyfw/venv/bin/proxyfw "$@"
exec /rw/proxyfw/venv/bin/proxyfw "$@"'
	first_config "$app_config"
	bind_state
	# From here on it would start at the next boot.
	mkdir -p "$(dirname "$app_hook")"
	install -m 755 qubes/proxyfw-hook "$app_hook"
	start_at_boot
	start_app
	say "done: proxyfw is in this netvm, in /rw/proxyfw; proxyfw --help"
	say "its configuration: /rw/config/proxyfw/proxyfw.yaml"
	left_to_do
}

install_in_template() {
	install_packages install
	use_updates_proxy
	venv=$template_home/venv
	mkdir -p "$template_home" "$template_units" "$template_presets"
	install_venv requirements.lock
	copy_programs "$template_home"
	install -m 644 qubes/systemd/proxyfw.service qubes/systemd/proxyfw-failsafe.service "$template_units"
	install -m 644 qubes/systemd/74-proxyfw.preset "$template_presets"
	check_failsafe
	make_user
	# Of the netvms made from this template, those that run proxyfw keep its log.
	mkdir -p "$state" "$(dirname "$template_binds")"
	echo "[ ! -e /run/qubes-service/proxyfw ] || binds+=( '/var/lib/proxyfw' )" > "$template_binds"
	write_command "$template_command" 'exec /usr/lib/proxyfw/venv/bin/proxyfw "$@"'
	first_config "$template_config"
	systemctl daemon-reload
	systemctl enable --quiet proxyfw-failsafe.service proxyfw.service
	if [ -e "$services/proxyfw" ]; then # a standalone netvm
		systemctl start proxyfw-failsafe.service
		start_service
		say "done: proxyfw is in this netvm, in /usr/lib/proxyfw; proxyfw --help"
	else
		say "done: proxyfw is in this template, in /usr/lib/proxyfw. Shut it down, and start the netvm anew"
	fi
	say "its configuration: in the netvm, /rw/config/proxyfw/proxyfw.yaml; where there is none, /etc/proxyfw/proxyfw.yaml of the template"
	left_to_do
}

# The name of the netvm, as far as this qube can know it.
netvm() {
	if [ "$persistence" = full ] && [ ! -e "$services/qubes-network" ]; then
		echo NETVM
	else
		qubesdb /name
	fi
}

left_to_do() {
	cat >&2 <<-END

		Left to do in dom0:
		$([ "$persistence" = full ] && echo "  qvm-service $(netvm) proxyfw on       # then start it anew")
		  qvm-prefs CLIENT netvm $(netvm)     # for each qube that is to be behind it
		  and what \`proxyfw qubes-policy\` prints in the netvm, once your clients are in its configuration: a policy
		  file, by which it can tell the clients' names and tags, and the commands
	END
}

# A template reaches the package index through Qubes' updates proxy alone.
use_updates_proxy() {
	[ -e "$services/updates-proxy-setup" ] || [ -e "$services/yum-proxy-setup" ] || return 0
	[ -z "${https_proxy:-}${HTTPS_PROXY:-}${PIP_PROXY:-}" ] || return 0
	say "Python packages come through the updates proxy"
	export https_proxy=http://127.0.0.1:8082 http_proxy=http://127.0.0.1:8082
}

copy_programs() {
	install -m 755 qubes/proxyfw-failsafe qubes/proxyfw-run qubes/proxyfw-takeover "$1"
	[ "$1" != "$app_home" ] || install -m 755 qubes/proxyfw-boot "$1"
	install -m 644 iptables/fail-safe.nft "$1"
}

# The module is a system package, and of an AppVM's system nothing lasts but the template's. It is plain Python, and the
# library behind it is nft's own.
keep_nftables() {
	from=$("$(system_python)" -c 'import nftables, os; print(os.path.dirname(nftables.__file__))')
	to=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nftables
	rm -rf "$to"
	mkdir "$to"
	cp "$from"/*.py "$from"/*.json "$to"
	"$venv/bin/python" -m compileall -q "$to"
}

# What cannot be loaded at boot had better be known now.
check_failsafe() {
	why=$(nft -c -f iptables/fail-safe.nft 2>&1) || {
		say "nftables of this qube does not take the fail-safe ruleset: $why"
		exit 2
	}
}

make_user() {
	getent passwd "$user" >/dev/null ||
		useradd --system --user-group --no-create-home --home-dir /var/lib/proxyfw --shell /usr/sbin/nologin "$user"
}

# write_command FILE TEXT
write_command() {
	mkdir -p "$(dirname "$1")"
	printf "#!/bin/sh\n# Written by proxyfw's setup.sh.\n%s\n" "$2" > "$1"
	chmod 755 "$1"
}

first_config() {
	mkdir -p "$1"
	if [ ! -e "$1/proxyfw.yaml" ]; then
		install -m 644 qubes/proxyfw.yaml "$1/proxyfw.yaml"
		if [ -f "$dynamic_firewall/clients" ]; then
			sed -i 's,^clients: {}$,clients_file: /rw/dynamic-firewall/clients,' "$1/proxyfw.yaml"
			say "a first configuration: $1/proxyfw.yaml, with the clients of /rw/dynamic-firewall/clients"
		else
			say "a first configuration: $1/proxyfw.yaml. It lists no client yet: all are refused"
		fi
	fi
	if grep -qs dynamic-firewall/install.sh "$app_rc_local" || [ -e "$dynamic_failsafe" ]; then
		say "WARNING: dynamic-firewall is started here too, and would refuse what it does not know: take its line out of"
		say "WARNING: /rw/config/rc.local and its link out of /rw/config/qubes-firewall.d, then start this netvm anew"
	fi
}

# For now, and by bind-dirs for every boot to come.
bind_state() {
	mkdir -p "$app_state" "$state" "$(dirname "$app_binds")"
	echo "binds+=( '/var/lib/proxyfw' )" > "$app_binds"
	mountpoint -q "$state" || mount --bind "$app_state" "$state"
}

# rc.local.d is known to the agent since December 2023; before, there is rc.local alone.
start_at_boot() {
	if grep -q rc.local.d "$root/usr/lib/qubes/init/misc-post.sh" 2>/dev/null; then
		mkdir -p "$(dirname "$app_boot")"
		ln -sfn /rw/proxyfw/proxyfw-boot "$app_boot"
		return
	fi
	[ -s "$app_rc_local" ] || printf '#!/bin/sh\n' > "$app_rc_local"
	chmod +x "$app_rc_local"
	# As its second line: what the user has in it may end it early.
	grep -qxF "$boot_line" "$app_rc_local" || sed -i "1a $boot_line" "$app_rc_local"
}

start_app() {
	"$app_home/proxyfw-boot" || exit 2
	start_service
}

start_service() {
	systemctl restart proxyfw.service && return
	say "the service does not start yet, and all clients are refused meanwhile: journalctl -u proxyfw"
}
