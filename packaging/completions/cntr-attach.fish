# SPDX-License-Identifier: MIT
# fish completion for cntr-attach. Names come from the service, which tells them to those who may list machines.

function __cntr_attach_machines
    cntrctl list --no-legend --no-pager --no-ask-password 2>/dev/null | while read -l name kind rest
        echo $name
        echo $kind:$name
    end
end

function __cntr_attach_images
    cntrctl images --no-legend --no-pager --no-ask-password 2>/dev/null | while read -l name rest
        echo $name
    end
    cntrctl list --no-legend --no-pager --no-ask-password 2>/dev/null | while read -l name kind rest
        echo $kind:$name
    end
    __fish_complete_path (commandline -ct)
end

function __cntr_attach_needs_machine
    set -l tokens (commandline -opc)
    set -e tokens[1]
    set -l skip 0
    for token in $tokens
        if test $skip = 1
            set skip 0
        else if contains -- $token --image -u --user -E --setenv --chdir -p --property -H --host --capabilities --label
            set skip 1
        else if not string match -q -- '-*' $token
            return 1
        end
    end
    return 0
end

complete -c cntr-attach -n __cntr_attach_needs_machine -f -a '(__cntr_attach_machines)'
complete -c cntr-attach -n 'not __cntr_attach_needs_machine' -a '(__fish_complete_subcommand --fcs-skip=2 --image -u --user -E --setenv --chdir -p --property -H --host --capabilities --label)'
complete -c cntr-attach -n __cntr_attach_needs_machine -l image -x -a '(__cntr_attach_images)' -d 'With the tools of an image'
complete -c cntr-attach -n __cntr_attach_needs_machine -s u -l user -x -d 'Be this user of the machine'
complete -c cntr-attach -n __cntr_attach_needs_machine -s E -l setenv -x -a '(set -nx)' -d 'Set a variable, or pass one on'
complete -c cntr-attach -n __cntr_attach_needs_machine -l chdir -x -d 'Start in this directory'
complete -c cntr-attach -n __cntr_attach_needs_machine -l writable -d 'Allow writing to the tools'
complete -c cntr-attach -n __cntr_attach_needs_machine -l strict -d 'Only the capabilities of the machine'
complete -c cntr-attach -n __cntr_attach_needs_machine -l capabilities -x -d 'At most these capabilities'
complete -c cntr-attach -n __cntr_attach_needs_machine -l label -x -a 'machine off' -d 'Of AppArmor or SELinux'
complete -c cntr-attach -n __cntr_attach_needs_machine -s p -l property -x -a 'CPUQuota= CPUWeight= IOWeight= IOReadBandwidthMax= IOWriteBandwidthMax= MemoryHigh= MemoryMax= MemorySwapMax= TasksMax= RuntimeMaxSec=' -d 'Limit the session'
complete -c cntr-attach -n __cntr_attach_needs_machine -s t -l pty -d 'Give the command a terminal'
complete -c cntr-attach -n __cntr_attach_needs_machine -s P -l pipe -d 'Give the command pipes'
complete -c cntr-attach -n __cntr_attach_needs_machine -s H -l host -x -a '(__fish_print_hostnames)' -d 'On another host'
complete -c cntr-attach -n __cntr_attach_needs_machine -l direct -d 'Without the service'
complete -c cntr-attach -n __cntr_attach_needs_machine -s v -l verbose -d 'Tell what the session cost'
complete -c cntr-attach -n __cntr_attach_needs_machine -s q -l quiet -d 'No messages but errors'
complete -c cntr-attach -n __cntr_attach_needs_machine -l no-ask-password -d 'Fail rather than ask for a password'
complete -c cntr-attach -n __cntr_attach_needs_machine -s h -l help -d 'Show help'
complete -c cntr-attach -n __cntr_attach_needs_machine -l version -d 'Show the version'
