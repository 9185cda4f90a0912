#!/usr/bin/env bash
# A real SLURM on this machine, for tests: munge, slurmdbd over MariaDB, slurmctld and one slurmd with
# two fake GPUs. No systemd; everything lives in DIR, except the links in /etc/slurm (see `up`).
#   cluster.sh missing      prints the Debian packages that are not installed
#   cluster.sh install      apt-get installs them (root)
#   cluster.sh up DIR       starts the daemons (root)
#   cluster.sh try DIR      starts them, runs one job, ends them
#   cluster.sh down DIR     cancels the jobs and ends the daemons whose pid files lie in DIR/run
set -euo pipefail
PACKAGES=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server)
export PATH="$PATH:/usr/sbin:/sbin"

fail() { echo "cluster.sh: $*" >&2; exit 1; }

wait_for() { # SECONDS COMMAND...
  local seconds=$1; shift
  for _ in $(seq $((seconds * 10))); do timeout 5 "$@" > /dev/null 2>&1 && return 0; sleep .1; done
  fail "timeout after $seconds s, waiting for: $*"
}

missing() {
  local name
  for name in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2> /dev/null)" = installed ] || echo "$name"
  done
}

install() {
  [ -n "$(missing)" ] || return 0
  [ "$(id -u)" = 0 ] || fail "installing packages needs root"
  export DEBIAN_FRONTEND=noninteractive
  if [ ! -e /usr/sbin/policy-rc.d ]; then # the packages must not start services of their own
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"
}

up() {
  local dir host file
  dir=$(realpath -m "$1") host=$(hostname -s)
  [ "$(id -u)" = 0 ] || fail "the test cluster needs root (a container will do)"
  for file in slurm gres cgroup; do # a link to nowhere is what a killed run left
    if [ -e "/etc/slurm/$file.conf" ]; then
      fail "/etc/slurm/$file.conf exists: this machine has a SLURM of its own, or the test runs twice"
    fi
  done
  mkdir -p "$dir"/{munge,state,log,run} /etc/slurm
  chmod 700 "$dir/munge"
  (umask 077; head -c 128 /dev/urandom > "$dir/munge/key")
  munged --force --socket="$dir/munge/sock" --key-file="$dir/munge/key" --log-file="$dir/munge/log" \
    --pid-file="$dir/run/munged.pid" --seed-file="$dir/munge/seed"
  wait_for 10 munge -n -S "$dir/munge/sock"

  # Fake GPUs: only for character devices does SLURM set CUDA_VISIBLE_DEVICES.
  printf '%s\n' AutoDetect=off "Name=gpu Type=fake File=/dev/null" "Name=gpu Type=fake File=/dev/zero" \
    > "$dir/gres.conf"

  # A job over its memory ends OUT_OF_MEMORY where cgroup v1 can be written, else FAILED by polling.
  local task=task/none polled=JobAcctGatherParams=OverMemoryKill
  if [ -w /sys/fs/cgroup/memory/cgroup.procs ]; then
    task=task/cgroup polled=
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup ConstrainRAMSpace=yes \
      > "$dir/cgroup.conf"
  fi

  # CPUs and memory are what the rules ask for, not what the machine has (config_overrides).
  cat > "$dir/slurm.conf" << END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/sock,cred_expire=10
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=$task
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
$polled
MinJobAge=600
KillWait=2
EnforcePartLimits=ALL
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$dir/munge/sock
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
AccountingStorageEnforce=associations,limits,qos
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:fake:2 State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=1-0 DefaultTime=10
PartitionName=gpu Nodes=$host MaxTime=1-0 DefaultTime=10
END
  export SLURM_CONF="$dir/slurm.conf"
  # The executor hides SLURM_CONF from the jobs, so the default place has to lead here too.
  for file in slurm gres cgroup; do
    if [ -e "$dir/$file.conf" ]; then ln -sfn "$dir/$file.conf" "/etc/slurm/$file.conf"; fi
  done

  mariadb-install-db --no-defaults --user=root --datadir="$dir/mysql" --skip-test-db \
    --auth-root-authentication-method=normal > "$dir/log/mariadb-install.log" 2>&1
  setsid mariadbd --no-defaults --user=root --datadir="$dir/mysql" --socket="$dir/run/mysql.sock" \
    --pid-file="$dir/run/mariadbd.pid" --skip-networking --log-error="$dir/log/mariadb.log" \
    < /dev/null > /dev/null 2>&1 &
  wait_for 60 mariadb-admin --no-defaults -u root -S "$dir/run/mysql.sock" ping
  (umask 077; cat > "$dir/slurmdbd.conf" << END
AuthType=auth/munge
AuthInfo=socket=$dir/munge/sock
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
PidFile=$dir/run/slurmdbd.pid
LogFile=$dir/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
END
)
  MYSQL_UNIX_PORT="$dir/run/mysql.sock" slurmdbd
  wait_for 60 sacctmgr -n list cluster
  sacctmgr -i add cluster test > /dev/null
  sacctmgr -i add account study > /dev/null
  sacctmgr -i add user root account=study > /dev/null
  slurmctld
  wait_for 30 scontrol ping
  slurmd
  wait_for 30 sh -c 'test "$(sinfo -hN -p cpu -t idle | wc -l)" -ge 1'
}

down() {
  local dir name pid file
  dir=$(realpath -m "$1")
  export SLURM_CONF="$dir/slurm.conf"
  timeout 10 scancel --user=root 2> /dev/null || true
  sleep 2
  for name in slurmd slurmctld slurmdbd mariadbd munged; do
    pid=$(cat "$dir/run/$name.pid" 2> /dev/null) || continue
    kill "$pid" 2> /dev/null || continue
    for _ in $(seq 150); do kill -0 "$pid" 2> /dev/null || break; sleep .1; done
    if kill -0 "$pid" 2> /dev/null; then kill -9 "$pid"; fi
  done
  for file in slurm gres cgroup; do
    if [ "$(readlink "/etc/slurm/$file.conf")" = "$dir/$file.conf" ]; then rm "/etc/slurm/$file.conf"; fi
  done
  # a cgroup that stays would mark a later job of the same number OUT_OF_MEMORY
  find /sys/fs/cgroup/*/slurm_* -depth -type d -exec rmdir {} + 2> /dev/null || true
}

try() {
  local code=0
  (up "$1" && SLURM_CONF="$1/slurm.conf" timeout 60 srun --account=study true) || code=$?
  down "$1"
  return "$code"
}

"$@"
