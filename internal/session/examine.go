package session

import (
	"time"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// findings are what a session learns from the machine's own files and memory.
type findings struct {
	account account
	tree    *tree
	environ []string
}

// examineLimit bounds how long a machine may take to answer. Its files may be on a file system that one of its processes
// serves, and so may the memory that its first process has its environment in.
const examineLimit = 2 * time.Second

// examine looks into the machine. A machine that does not answer in time is given up: what waits for it is a
// thread of this process, which ends then. The label is that of the machine's files, for SELinux.
func (p *process) examine(uids, gids []ns.Range, label string) (*findings, error) {
	type answer struct {
		*findings
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		f, err := p.look(uids, gids, label)
		answered <- answer{f, err}
	}()
	select {
	case a := <-answered:
		return a.findings, a.err
	case <-time.After(examineLimit):
		p.stuck = true
		return nil, fail.New(fail.Unresponsive, "one of its processes serves a file system, on /etc or /tmp say, and does not answer",
			"machine %q cannot be looked into: reading a file of it took more than %v", p.request.Info.Machine, examineLimit)
	}
}

func (p *process) look(uids, gids []ns.Range, label string) (*findings, error) {
	pid := p.leader.PID
	root, err := ns.OpenRoot(pid)
	if err != nil {
		return nil, p.gone(err)
	}
	f := &findings{}
	if !p.request.Strict {
		if f.environ, err = ns.Environ(pid); err != nil {
			return nil, p.gone(err)
		}
	}
	if !p.leader.Alive() {
		return nil, p.gone(nil) // what was read may be somebody else's
	}
	root.As(outside(uids, 0), outside(gids, 0))
	if f.account, err = findAccount(root, p.request.Info.User); err != nil {
		return nil, err
	}
	const tty = 5 // the group's id on every distribution that has devpts' group set
	f.tree, err = newTree(root, p.tools.Looks, pid, p.request.Info.Machine, outside(uids, f.account.uid), outside(gids, tty), label)
	return f, err
}
