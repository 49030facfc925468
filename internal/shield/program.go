package shield

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// hook is the function that the program runs before: int f(struct task_struct *child, unsigned int mode).
const hook = "security_ptrace_access_check"

// offsets are where in the kernel's structures things are, in bytes.
type offsets struct {
	cgroups   int32 // task_struct.cgroups: struct css_set *
	group     int32 // css_set.dfl_cgrp: struct cgroup *, in the unified hierarchy
	node      int32 // cgroup.kn: struct kernfs_node *
	id        int32 // kernfs_node.id: its inode number, on 64 bits
	parent    int32 // cgroup.self.parent: that of the parent, struct cgroup_subsys_state *
	self      int32 // cgroup.self
	pid       int32 // task_struct.thread_pid: struct pid *
	level     int32 // pid.level: how many pid namespaces are above the task's own
	numbers   int32 // pid.numbers: struct upid, one for each of them and the last its own
	namespace int32 // upid.ns: struct pid_namespace *
	upid      int32 // the size of struct upid
	inum      int32 // pid_namespace.ns.inum
}

// findOffsets asks the running kernel, which describes its structures in /sys/kernel/btf/vmlinux.
func findOffsets() (o offsets, err error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return o, err
	}
	for _, f := range []struct {
		to    *int32
		kind  string
		names []string
	}{
		{&o.cgroups, "task_struct", []string{"cgroups"}},
		{&o.group, "css_set", []string{"dfl_cgrp"}},
		{&o.node, "cgroup", []string{"kn"}},
		{&o.id, "kernfs_node", []string{"id"}},
		{&o.parent, "cgroup", []string{"self", "parent"}},
		{&o.self, "cgroup", []string{"self"}},
		{&o.pid, "task_struct", []string{"thread_pid"}},
		{&o.level, "pid", []string{"level"}},
		{&o.numbers, "pid", []string{"numbers"}},
		{&o.namespace, "upid", []string{"ns"}},
		{&o.inum, "pid_namespace", []string{"ns", "inum"}},
	} {
		if *f.to, err = offset(spec, f.kind, f.names); err != nil {
			return o, err
		}
	}
	var upid *btf.Struct
	if err := spec.TypeByName("upid", &upid); err != nil {
		return o, err
	}
	o.upid = int32(upid.Size)
	return o, nil
}

// offset returns where a member is in a structure, or a member of a member.
func offset(spec *btf.Spec, kind string, names []string) (int32, error) {
	var in *btf.Struct
	if err := spec.TypeByName(kind, &in); err != nil {
		return 0, fmt.Errorf("struct %s: %w", kind, err)
	}
	var at uint32
	for i, name := range names {
		m, before, ok := member(in, name)
		if !ok {
			return 0, fmt.Errorf("struct %s has no member %s", in.Name, name)
		}
		at += before
		if i == len(names)-1 {
			break
		}
		if in, ok = btf.UnderlyingType(m.Type).(*btf.Struct); !ok {
			return 0, fmt.Errorf("member %s of struct %s is no structure", name, kind)
		}
	}
	if at > 1<<15 {
		return 0, errors.New("an impossible offset")
	}
	return int32(at), nil
}

// member finds a member of a structure, also within unnamed structures and unions in it.
func member(in *btf.Struct, name string) (*btf.Member, uint32, bool) {
	return find(in.Members, name, 0)
}

func find(members []btf.Member, name string, at uint32) (*btf.Member, uint32, bool) {
	for i := range members {
		m := &members[i]
		here := at + m.Offset.Bytes()
		if m.Name == name {
			return m, here, true
		}
		if m.Name != "" {
			continue
		}
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			if m, at, ok := find(t.Members, name, here); ok {
				return m, at, true
			}
		case *btf.Union:
			if m, at, ok := find(t.Members, name, here); ok {
				return m, at, true
			}
		}
	}
	return nil, 0, false
}

// The loops are unrolled, so they have an end.
const (
	cgroupDepth = 16 // how far below the session's control group a process is found
	pidDepth    = 32 // MAX_PID_NS_LEVEL
)

// The program's registers and stack. Registers 6 to 9 survive calls.
const (
	child   = asm.R6
	current = asm.R7
	entry   = asm.R8 // the session's entry in the table
	at      = asm.R9 // a pointer that is followed

	slot    = -8  // what was read last
	session = -16 // the control group of the child's session: the key of its entry
	other   = -24 // a control group that the current process is in
	depth   = -32 // the current process's pid.level
)

// instructions is the program. In C it would be
//
//	for (g = cgroup(child); !(entry = lookup(sessions, &g->kn->id)); g = parent(g))
//		if (!g) return 0;
//	for (g = cgroup(current); g; g = parent(g)) {
//		if (g->kn->id == session) return 0;
//		if (g->kn->id == entry->machine || lookup(sessions, &g->kn->id)) return -EPERM;
//	}
//	for (i = 0; i < current->thread_pid->level; i++)
//		if (current->thread_pid->numbers[i].ns->ns.inum == entry->pid_namespace) return -EPERM;
//	return 0;
func instructions(o offsets, table int) asm.Instructions {
	var p asm.Instructions
	do := func(more ...asm.Instruction) { p = append(p, more...) }
	// read makes dst what is at src+off, of size bytes.
	read := func(dst, src asm.Register, off int32, size asm.Size) {
		do(
			asm.Mov.Reg(asm.R3, src), asm.Add.Imm(asm.R3, off),
			asm.Mov.Imm(asm.R0, 0), asm.StoreMem(asm.RFP, slot, asm.R0, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, slot),
			asm.Mov.Imm(asm.R2, int32(size.Sizeof())),
			asm.FnProbeReadKernel.Call(), // zeroes the slot when it fails
			asm.LoadMem(dst, asm.RFP, slot, asm.DWord),
		)
	}
	lookup := func(key int16) {
		do(
			asm.LoadMapPtr(asm.R1, table),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, int32(key)),
			asm.FnMapLookupElem.Call(),
		)
	}
	// groups goes through the control groups of a task, each's id in the slot given, to the top.
	groups := func(task asm.Register, key int16, visit func(), top string) {
		read(at, task, o.cgroups, asm.DWord)
		read(at, at, o.group, asm.DWord)
		for range cgroupDepth {
			do(asm.JEq.Imm(at, 0, top))
			read(asm.R0, at, o.node, asm.DWord)
			read(asm.R0, asm.R0, o.id, asm.DWord)
			do(asm.StoreMem(asm.RFP, key, asm.R0, asm.DWord))
			visit()
			read(at, at, o.parent, asm.DWord)
			do(asm.JEq.Imm(at, 0, top), asm.Sub.Imm(at, o.self))
		}
		do(asm.Ja.Label(top))
	}

	do(asm.LoadMem(child, asm.R1, 0, asm.DWord))
	groups(child, session, func() {
		lookup(session)
		do(asm.JNE.Imm(asm.R0, 0, "covered"))
	}, "allow")

	do(asm.Mov.Reg(entry, asm.R0).WithSymbol("covered"), asm.FnGetCurrentTask.Call(), asm.Mov.Reg(current, asm.R0))
	groups(current, other, func() {
		do(
			asm.LoadMem(asm.R1, asm.RFP, other, asm.DWord),
			asm.LoadMem(asm.R2, asm.RFP, session, asm.DWord),
			asm.JEq.Reg(asm.R1, asm.R2, "allow"),
			asm.LoadMem(asm.R2, entry, 0, asm.DWord),
			asm.JEq.Reg(asm.R1, asm.R2, "refuse"),
		)
		lookup(other)
		do(asm.JNE.Imm(asm.R0, 0, "refuse"))
	}, "namespaces")

	do(asm.Mov.Imm(at, 0).WithSymbol("namespaces"))
	read(at, current, o.pid, asm.DWord)
	read(asm.R0, at, o.level, asm.Word)
	do(asm.StoreMem(asm.RFP, depth, asm.R0, asm.DWord))
	for i := range int32(pidDepth) {
		do(asm.LoadMem(asm.R0, asm.RFP, depth, asm.DWord), asm.JLE.Imm(asm.R0, i, "allow"))
		read(asm.R0, at, o.numbers+i*o.upid+o.namespace, asm.DWord)
		read(asm.R0, asm.R0, o.inum, asm.Word)
		do(asm.LoadMem(asm.R1, entry, 8, asm.Word), asm.JEq.Reg(asm.R0, asm.R1, "refuse"))
	}
	do(
		asm.Mov.Imm(asm.R0, 0).WithSymbol("allow"), asm.Return(),
		asm.Mov.Imm(asm.R0, -int32(unix.EPERM)).WithSymbol("refuse"), asm.Return(),
	)
	return p
}
