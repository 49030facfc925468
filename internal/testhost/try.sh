M=/usr/lib/testhost/machine
$M start lxc l1 full; cntr-attach lxc:l1 -- sh -c 'timeout 3 tcpdump --immediate-mode -i lo -c 1 -w - >/dev/null; ip a; ls -la /tmp; mount | grep /tmp; touch /tmp/x'; $M stop lxc l1
cat /etc/subuid /etc/subgid; $M start incus i1 slim; incus info --show-log i1 | tail -20; incus config show i1 | grep idmap;  $M stop incus i1
