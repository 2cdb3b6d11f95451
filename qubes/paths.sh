# shellcheck shell=sh
# Where things are on Qubes OS; for install.sh and uninstall.sh. Tests set PROXYFW_ROOT to a folder that stands for /.
root=${PROXYFW_ROOT:-}

# In a template, or in a standalone qube, of which everything lasts.
template_home=$root/usr/lib/proxyfw
template_command=$root/usr/bin/proxyfw
template_units=$root/usr/lib/systemd/system
template_presets=$root/usr/lib/systemd/system-preset
template_binds=$root/usr/lib/qubes-bind-dirs.d/50_proxyfw.conf
template_wants="$root/etc/systemd/system/multi-user.target.wants/proxyfw.service $root/etc/systemd/system/qubes-network.service.requires/proxyfw-failsafe.service"
template_config=$root/etc/proxyfw
state=$root/var/lib/proxyfw

# In an AppVM, of which /rw lasts. /usr/local is /rw/usrlocal.
app_home=$root/rw/proxyfw
app_command=$root/rw/usrlocal/bin/proxyfw
app_config=$root/rw/config/proxyfw
app_state=$root/rw/bind-dirs/var/lib/proxyfw
app_hook=$root/rw/config/qubes-firewall.d/50-proxyfw
app_boot=$root/rw/config/rc.local.d/50-proxyfw.rc
app_rc_local=$root/rw/config/rc.local
app_binds=$root/rw/config/qubes-bind-dirs.d/50_proxyfw.conf
app_unit=$root/run/systemd/system/proxyfw.service
boot_line="[ ! -x /rw/proxyfw/proxyfw-boot ] || /rw/proxyfw/proxyfw-boot  # proxyfw"

# Another firewall that may have been here before.
dynamic_firewall=$root/rw/dynamic-firewall
dynamic_failsafe=$root/rw/config/qubes-firewall.d/01-dynamic-firewall-failsafe.nft

services=$root/run/qubes-service

# A user of the qube's, for the service alone.
user=proxyfw

qubesdb() { qubesdb-read "$1" 2>/dev/null || true; }
