#!/bin/sh
# What `./setup.sh uninstall` does on Qubes OS, as root: takes away all that `./setup.sh qubes` made, also where it made
# only part of it. The user's configuration and the log stay.
set -eu
cd "$(dirname "$0")/.."
. qubes/paths.sh

say() { echo "setup: $*" >&2; }

at_exit() {
	code=$?
	[ "$code" = 0 ] && return
	say "NOT complete: part of proxyfw is still here, and its rules may be in force. Mend what is told above, then run"
	say "sudo ./setup.sh uninstall once more"
	exit "$code"
}
trap at_exit EXIT

# First what would start at the next boot, then the service, then its rules: qubes-firewall has to be in force before.
rm -f "$app_hook" "$app_boot" "$app_binds"
if [ -e "$app_rc_local" ] && grep -qxF "$boot_line" "$app_rc_local"; then
	rest=$(grep -vxF "$boot_line" "$app_rc_local" || true)
	printf '%s\n' "$rest" > "$app_rc_local"
fi
if [ -e "$template_units/proxyfw.service" ] && [ "$(qubesdb /qubes-vm-persistence)" != full ]; then
	template_stays=yes
	say "the template has proxyfw too: ./setup.sh uninstall there, or in dom0: qvm-service $(qubesdb /name) proxyfw off"
else
	template_stays=no
	systemctl disable --quiet proxyfw-failsafe.service proxyfw.service 2>/dev/null || true
	# Which does nothing where the units are gone already.
	# shellcheck disable=SC2086
	rm -f $template_wants
fi
systemctl stop proxyfw.service proxyfw-failsafe.service 2>/dev/null || true
rm -f "$app_unit"
[ "$template_stays" = yes ] ||
	rm -f "$template_units/proxyfw.service" "$template_units/proxyfw-failsafe.service" "$template_presets/74-proxyfw.preset" "$template_binds"
systemctl daemon-reload || true
systemctl reset-failed proxyfw.service proxyfw-failsafe.service 2>/dev/null || true

sh qubes/proxyfw-takeover give

! mountpoint -q "$state" || umount "$state"
rm -rf "$app_home" "$app_command"
if [ "$template_stays" = no ]; then
	rm -rf "$template_home" "$template_command"
	if getent passwd "$user" >/dev/null; then
		userdel "$user"
	fi
fi
for folder in "$app_state" "$state"; do
	# Nobody is to come into the log by being given the number of a user that is gone.
	[ ! -d "$folder" ] || [ "$template_stays" = yes ] || chown -R 0:0 "$folder"
	rmdir "$folder" 2>/dev/null || true
done

for kept in "$app_config" "$template_config" "$app_state" "$state"; do
	[ ! -e "$kept" ] || say "kept: $kept"
done
say "gone from this qube. In dom0 there may be /etc/qubes/policy.d/30-proxyfw.policy, the tag proxyfw and the service switch"
