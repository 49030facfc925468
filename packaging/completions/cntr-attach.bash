# SPDX-License-Identifier: MIT
# bash completion for cntr-attach. Names come from the service, which tells them to those who may list machines.

_cntr_attach_machines() {
    cntrctl list --no-legend --no-pager --no-ask-password 2>/dev/null | while read -r name kind _; do
        printf '%s\n%s:%s\n' "$name" "$kind" "$name"
    done
}

# What --image takes. A directory is completed as such once it is begun.
_cntr_attach_images() {
    cntrctl images --no-legend --no-pager --no-ask-password 2>/dev/null | while read -r name _; do
        printf '%s\n' "$name"
    done
    cntrctl list --no-legend --no-pager --no-ask-password 2>/dev/null | while read -r name kind _; do
        printf '%s:%s\n' "$kind" "$name"
    done
}

_cntr_attach() {
    local cur=$2 prev=$3 i
    local with_value=' --image -u --user -E --setenv --chdir -p --property -H --host --capabilities '
    local options='--image= -u --user= -E --setenv= --chdir= --writable --strict --capabilities= --label=off -p --property= -t --pty -P --pipe -H --host= --direct
        -v --verbose -q --quiet --no-ask-password -h --help --version'
    COMPREPLY=()
    # Words of bash end at "=" and ":", those of the command line do not.
    if declare -F _get_comp_words_by_ref >/dev/null; then
        local words cword
        _get_comp_words_by_ref -n := cur prev words cword
    else
        local words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
    fi
    for ((i = 1; i < cword; i++)); do
        if [[ $with_value == *" ${words[i]} "* ]]; then
            ((i++))
        elif [[ ${words[i]} != -* ]]; then
            # The command, with whatever completes that on this host: it is from here.
            if declare -F _command_offset >/dev/null; then
                _command_offset $((i + 1))
            else
                mapfile -t COMPREPLY < <(compgen -c -- "$cur")
            fi
            return
        fi
    done
    case $prev in
    -p | --property)
        mapfile -t COMPREPLY < <(compgen -W 'CPUQuota= CPUWeight= IOWeight= IOReadBandwidthMax= IOWriteBandwidthMax=
            MemoryHigh= MemoryMax= MemorySwapMax= TasksMax= RuntimeMaxSec=' -- "$cur")
        compopt -o nospace
        return
        ;;
    -H | --host)
        mapfile -t COMPREPLY < <(compgen -A hostname -- "$cur")
        return
        ;;
    -E | --setenv)
        mapfile -t COMPREPLY < <(compgen -e -- "$cur")
        return
        ;;
    -u | --user | --chdir | --capabilities) return ;;
    --image) cur=--image=$cur ;;
    esac
    if [[ $cur == --image=* ]]; then
        local image=${cur#--image=}
        if [[ $image == [./]* ]]; then
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$image")
        else
            mapfile -t COMPREPLY < <(compgen -W "$(_cntr_attach_images)" -- "$image")
            if declare -F __ltrim_colon_completions >/dev/null; then
                __ltrim_colon_completions "$image"
            fi
        fi
        return
    fi
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$(_cntr_attach_machines)" -- "$cur")
    if declare -F __ltrim_colon_completions >/dev/null; then
        __ltrim_colon_completions "$cur"
    fi
}

complete -F _cntr_attach cntr-attach
