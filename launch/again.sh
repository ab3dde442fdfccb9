# again COMMAND ...: run it as the table of docs/training.md asks of whoever starts a training. Sourced, never run, by
# launch/local and launch/slurm/train.sbatch.
#
#   COMMAND leaves with    0, 75 or 78: so does `again`
#                          anything else (1: it broke, 70: it hung, a signal): COMMAND is started again after
#                          V2F_PAUSE seconds (30), V2F_RESTARTS times (3) in all; then `again` leaves with that code
#   this shell is sent     SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP: COMMAND gets SIGUSR1, which `v2f exec` hands
#                          to the ranks: save and leave. Whatever it leaves with then, `again` does not start it anew

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
    export V2F_STARTED="${V2F_STARTED:-$(date +%s)}" # what --max-time counts from, however often COMMAND is started
    trap wish TERM USR1 INT HUP
    while [ -z "$asked" ]; do
        run "$@"
        case $code in 0 | 75 | 78) return "$code" ;; esac
        if [ -z "$asked" ]; then
            if [ "$left" -le 0 ]; then
                echo "v2f: it left with $code once more, and is not started again" >&2
                return "$code"
            fi
            left=$((left - 1))
            echo "v2f: it left with $code; once more in ${V2F_PAUSE:-30} s, then $left times at most" >&2
            run sleep "${V2F_PAUSE:-30}"
        fi
    done
    return 75 # before the ranks listened, or without a save: the checkpoint before counts
}
