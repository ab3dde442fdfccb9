# again COMMAND ...: run COMMAND, and restart it as the exit codes in docs/training.md require. launch/local and
# launch/slurm/train.sbatch source this file; it is never executed.
#
#   COMMAND exits with     0, 75 or 78: `again` returns that code
#                          anything else (1: it failed, 70: it hung, a signal): COMMAND is restarted after V2F_PAUSE
#                          seconds (30), at most V2F_RESTARTS times (3); then `again` returns that code
#   this shell receives    SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP: COMMAND gets SIGUSR1, which `v2f exec` passes
#                          to the ranks: save and exit. `again` does not restart it then, whatever its exit code

# Print a line on stderr. The terminal may be gone: a failed write or a broken pipe must not end the script.
say() {
    (echo "v2f: $1" >&2) || :
}

# The identity of this shell, in the format of v2f/storage/processes.py: `v2f exec` saves and exits
# when this shell is gone, even after SIGKILL.
starter() {
    # shellcheck disable=SC2046 # the 20th field after the program's name is its start time
    set -- $(sed 's/.*) //' "/proc/$$/stat")
    echo "$$:${20}:$(cat /proc/sys/kernel/random/boot_id):$(readlink /proc/self/ns/pid)"
}

asked= heard= child=

request_stop() {
    asked=1 heard=1
    [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null || :
}

# Run a command to its end and set `code` to its exit code. A shell's `wait` returns early on a signal, so wait again
# until no signal interrupts it; 127 then means that the previous `wait` returned the exit code. SIGUSR1 is repeated
# after a second, because a process that is just starting may miss the first one.
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
    # The start time for --max-time, the same for all restarts of COMMAND; also as uptime, which nobody can change.
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
    trap request_stop TERM USR1 INT HUP
    while [ -z "$asked" ]; do
        run "$@"
        case $code in 0 | 75 | 78) return "$code" ;; esac
        if [ -z "$asked" ]; then
            if [ "$left" -le 0 ]; then
                say "exited with $code again; not restarting"
                return "$code"
            fi
            left=$((left - 1))
            say "exited with $code; restarting in ${V2F_PAUSE:-30} s, then at most $left more times"
            run sleep "${V2F_PAUSE:-30}"
        fi
    done
    return 75 # the ranks were not listening yet, or did not save: the previous checkpoint counts
}
