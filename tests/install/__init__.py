"""Installing on Qubes OS, on machines that are booted for it: systemd as process 1, in namespaces of its own."""
