# again COMMAND ...: run it as the table of docs/training.md asks of whoever starts a training. Sourced, never run, by
# launch/local and launch/slurm/train.sbatch.
#
#   COMMAND leaves with    0, 75 or 78: so does `again`
#                          anything else (1: it broke, 70: it hung, a signal): COMMAND is started again after
#                          V2F_PAUSE seconds (30), V2F_RESTARTS times (3) in all; then `again` leaves with that code
#   this shell is sent     SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP: COMMAND gets SIGUSR1, which `v2f exec` hands
#                          to the ranks: save and leave. Whatever it leaves with then, `again` does not start it anew

# A line on stderr. The terminal may be gone: by then no line must end the script, nor the signal of a broken pipe.
say() {
    (echo "v2f: $1" >&2) || :
}

# This shell as v2f/processes.py names a process: `v2f exec` saves and leaves when it is gone, were it by SIGKILL.
starter() {
    # shellcheck disable=SC2046 # the 20th field behind the name of the program is when it was started
    set -- $(sed 's/.*) //' "/proc/$$/stat")
    echo "$$:${20}:$(cat /proc/sys/kernel/random/boot_id):$(readlink /proc/self/ns/pid)"
}

asked= heard= child=

wish() {
    asked=1 heard=1
    [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null || :
}

# Run a command to its end; `code` is what it left with. A shell's `wait` ends early when a signal is heard, so it waits
# until it was not disturbed; 127 then means that the code was told the time before. The wish is repeated after a second:
# a process that is only just being started may lose the first.
run() {
    "$@" &
    child=$! code=127 heard=$asked
    while :; do
        if [ -n "$heard" ]; then
            heard=
            sleep 1
            kill -USR1 "$child" 2>/dev/null || :
        fi
        now=0
        wait "$child" || now=$?
        [ "$now" = 127 ] || code=$now
        [ -n "$heard" ] || break
    done
    child=
}

again() {
    left=${V2F_RESTARTS:-3}
    # What --max-time counts from, however often COMMAND is started; by the clock that nobody sets where there is one.
    if [ -z "${V2F_STARTED:-}" ]; then
        V2F_STARTED=$(date +%s)
        export V2F_STARTED
        if [ -r /proc/uptime ]; then
            V2F_STARTED_UPTIME=$(cat /proc/sys/kernel/random/boot_id):$(cut -d' ' -f1 /proc/uptime)
            export V2F_STARTED_UPTIME
        fi
    fi
    if [ -r "/proc/$$/stat" ]; then
        V2F_STARTER=$(starter)
        export V2F_STARTER
    fi
    trap wish TERM USR1 INT HUP
    while [ -z "$asked" ]; do
        run "$@"
        case $code in 0 | 75 | 78) return "$code" ;; esac
        if [ -z "$asked" ]; then
            if [ "$left" -le 0 ]; then
                say "it left with $code once more, and is not started again"
                return "$code"
            fi
            left=$((left - 1))
            say "it left with $code; once more in ${V2F_PAUSE:-30} s, then $left times at most"
            run sleep "${V2F_PAUSE:-30}"
        fi
    done
    return 75 # before the ranks listened, or without a save: the checkpoint before counts
}
