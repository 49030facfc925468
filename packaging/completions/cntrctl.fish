# SPDX-License-Identifier: MIT
# fish completion for cntrctl. Ids come from the service, which tells them to those who may list sessions.

set -l commands list sessions status terminate kill images import remove monitor

complete -c cntrctl -f
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a list -d 'Machines'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a sessions -d 'Sessions that run'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a status -d 'What a session is'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a terminate -d 'End sessions'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a kill -d 'Send a signal'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a images -d 'What can be the tools'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a import -d 'Bring an image here'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a remove -d 'Remove imported images'
complete -c cntrctl -n "not __fish_seen_subcommand_from $commands" -a monitor -d 'Follow sessions'
complete -c cntrctl -n '__fish_seen_subcommand_from import' -a 'docker:// oci:/ oci-archive:/ docker-archive:/'
complete -c cntrctl -n '__fish_seen_subcommand_from remove' -a '(cntrctl images --no-legend --no-pager --no-ask-password 2>/dev/null | string match -r "^\S+(?= +oci )")'
complete -c cntrctl -n '__fish_seen_subcommand_from status terminate kill' -a '(cntrctl sessions --no-legend --no-pager --no-ask-password 2>/dev/null | string split -f 1 " ")'
complete -c cntrctl -s s -l signal -x -d 'What kill sends'
complete -c cntrctl -l json -x -a 'short pretty off' -d 'Output as JSON'
complete -c cntrctl -l no-legend -d 'No headings and no totals'
complete -c cntrctl -l no-pager -d 'Do not page'
complete -c cntrctl -l no-ask-password -d 'Fail rather than ask for a password'
complete -c cntrctl -s h -l help -d 'Show help'
complete -c cntrctl -l version -d 'Show the version'
