#!/bin/sh
# Install Debian's Slurm packages for the private cluster, without starting a daemon.
#
# Does nothing if Slurm is installed, the user is not root, apt is missing, /etc/slurm/slurm.conf
# exists (the machine belongs to a cluster), or INSTALL_SLURM=0. Prints one line with what it did
# or why not, and always exits with 0: without Slurm the rest still works, in local processes.
# A second call does nothing.

POLICY=/usr/sbin/policy-rc.d
WANTED="slurmctld slurmd slurm-client munge"
LOG="${TMPDIR:-/tmp}/install-slurm.$$.log"

log() { printf 'slurm: %s\n' "$*"; }

present() {
    for tool in slurmctld slurmd srun sbatch munged; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null 2>&1 || return 1
    done
}

# Some images lack iproute2, which mode netns needs; an installed one is not upgraded.
packages() {
    echo "$WANTED"
    PATH="$PATH:/usr/sbin:/sbin" command -v ip >/dev/null 2>&1 || echo iproute2
}

restore_policy() {
    if [ -e "$POLICY.before-slurm" ]; then
        mv -f "$POLICY.before-slurm" "$POLICY"
    else
        rm -f "$POLICY"
    fi
}

forbid_daemons() {
    if [ -e "$POLICY" ] && [ ! -e "$POLICY.before-slurm" ]; then mv -f "$POLICY" "$POLICY.before-slurm" || return 1; fi
    trap restore_policy EXIT
    trap 'exit 0' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$POLICY" && chmod 755 "$POLICY"
}

apt_install() {
    # shellcheck disable=SC2046
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(packages) </dev/null >>"$LOG" 2>&1
}

if [ "${INSTALL_SLURM:-1}" = 0 ]; then log "not installed: INSTALL_SLURM=0"; exit 0; fi
if present; then log "already installed ($(PATH="$PATH:/usr/sbin:/sbin" slurmctld -V))"; exit 0; fi
if [ -e /etc/slurm/slurm.conf ]; then log "not installed: this machine belongs to a cluster (/etc/slurm/slurm.conf exists)"; exit 0; fi
if [ "$(id -u)" != 0 ]; then log "not installed: needs root; an administrator can install: $WANTED"; exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then log "not installed: no apt-get here; install by hand: $WANTED"; exit 0; fi
if ! forbid_daemons; then log "not installed: cannot write $POLICY, so daemons might start"; exit 0; fi

if apt_install || { apt-get update >>"$LOG" 2>&1; apt_install; }; then
    rm -f "$LOG"
    log "installed $(packages | tr '\n' ' ')with apt-get; no daemon was started"
else
    log "not installed: apt-get failed ($(grep -m1 '^E:' "$LOG" || echo 'no reason given'); log: $LOG)"
fi
exit 0
