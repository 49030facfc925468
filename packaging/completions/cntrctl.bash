# SPDX-License-Identifier: MIT
# bash completion for cntrctl. Ids come from the service, which tells them to those who may list sessions.

_cntrctl() {
    local cur=$2 prev=$3 word verb=''
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
        list | sessions | status | terminate | kill | images | import | remove | monitor)
            verb=$word
            break
            ;;
        esac
    done
    case $prev in
    -s | --signal)
        mapfile -t COMPREPLY < <(compgen -A signal -- "$cur")
        return
        ;;
    --json)
        mapfile -t COMPREPLY < <(compgen -W 'short pretty off' -- "$cur")
        return
        ;;
    =)
        [[ ${COMP_WORDS[COMP_CWORD - 2]} == --json ]] && mapfile -t COMPREPLY < <(compgen -W 'short pretty off' -- "$cur")
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '-s --signal= --json= --no-legend --no-pager --no-ask-password -h --help
            --version' -- "$cur")
        [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace
        return
    fi
    case $verb in
    '') mapfile -t COMPREPLY < <(compgen -W 'list sessions status terminate kill images import remove monitor' -- "$cur") ;;
    status | terminate | kill)
        mapfile -t COMPREPLY < <(compgen -W "$(cntrctl sessions --no-legend --no-pager --no-ask-password 2>/dev/null |
            cut -d ' ' -f 1)" -- "$cur")
        ;;
    import) mapfile -t COMPREPLY < <(compgen -W 'docker:// oci:/ oci-archive:/ docker-archive:/' -- "$cur") && compopt -o nospace ;;
    remove)
        mapfile -t COMPREPLY < <(compgen -W "$(cntrctl images --no-legend --no-pager --no-ask-password 2>/dev/null |
            awk '$2 == "oci" { print $1 }')" -- "$cur")
        ;;
    esac
}

complete -F _cntrctl cntrctl
