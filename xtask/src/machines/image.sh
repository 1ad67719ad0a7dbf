#!/bin/sh
# Prepares a fresh Debian for the provisioning, in place of the Vagrant box and the registry. Runs inside of it.
# Usage: image.sh, with the lab's public SSH key on the standard input.
set -eu

# As in the box: a user with all rights, and Docker does not run yet.
useradd --create-home --shell /bin/bash vagrant
install --directory --mode=700 --owner=vagrant --group=vagrant /home/vagrant/.ssh
cat >/home/vagrant/.ssh/authorized_keys
chown vagrant:vagrant /home/vagrant/.ssh/authorized_keys
echo "vagrant ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/vagrant
systemctl --quiet disable docker.service docker.socket containerd.service keepalived.service
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer \
    serial-getty@ttyS0.service getty@tty1.service
# There is no name server, and each login would wait for one.
echo "UseDNS no" >/etc/ssh/sshd_config.d/lab.conf
: >/etc/resolv.conf
# The kernel's command line has each machine's name and addresses.
rm -f /etc/hostname
printf "%s\n" "127.0.0.1 localhost" "127.0.1.1 manager manager2 worker1 worker2" >/etc/hosts
systemctl --quiet enable systemd-networkd.service systemd-network-generator.service

# The machines reach no package source, and apt would read the lists for minutes under emulation.
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /etc/apt/sources.list

# A small initrd boots faster under emulation.
sed --in-place "s/^MODULES=.*/MODULES=list/" /etc/initramfs-tools/initramfs.conf
printf "%s\n" virtio_pci virtio_blk ext4 >>/etc/initramfs-tools/modules
update-initramfs -u

# The image httpd:2.4: Debian's Apache, with the paths of Docker's image.
web=$(mktemp --directory)
mkdir --parents "$web/usr/local/apache2/htdocs" "$web/usr/local/apache2/logs" "$web/tmp" "$web/etc"
modules=/usr/lib/apache2/modules
for file in /usr/sbin/apache2 $modules/mod_mpm_event.so $modules/mod_authz_core.so $modules/mod_dir.so; do
    ldd "$file" | grep --only-matching "/[^ ]*"
    echo "$file"
    # Threads load it when they exit.
    ldconfig --print-cache | grep --only-matching "/.*/libgcc_s.so.1" | head --lines=1
done | sort --unique | while read -r file; do
    cp --dereference --parents "$file" "$web"
done
printf "%s\n" "root:x:0:0:root:/:/bin/false" "www-data:x:33:33::/:/bin/false" >"$web/etc/passwd"
printf "%s\n" "root:x:0:" "www-data:x:33:" >"$web/etc/group"
cat >"$web/etc/httpd.conf" <<EOF
LoadModule mpm_event_module $modules/mod_mpm_event.so
LoadModule authz_core_module $modules/mod_authz_core.so
LoadModule dir_module $modules/mod_dir.so
ServerName localhost
User www-data
Group www-data
ServerRoot /usr/local/apache2
PidFile /tmp/httpd.pid
ErrorLog /dev/stderr
Listen 80
DocumentRoot /usr/local/apache2/htdocs
DirectoryIndex index.html
MaxKeepAliveRequests 0
KeepAliveTimeout 3600
EOF
chmod 755 "$web"
tar --create --file=/usr/local/share/httpd.tar --directory="$web" .
rm --recursive "$web"
