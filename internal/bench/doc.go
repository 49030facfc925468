// Package bench measures how fast programs run in a session, next to the same programs on the host, on a bind mount,
// and in a session of cntr 1.6.0, the FUSE-era original that Debian 13 ships.
//
//	make bench                                all workloads, about a quarter of an hour
//	make bench BENCHFLAGS=--only=find         those whose names match
//	make bench BENCHFLAGS=--rounds=1          quickly
//
// # How it measures
//
//	bench (outside) ──► puts git, gcc, sqlite and cntr 1.6.0 into the test host
//	   │
//	   ▼
//	bench inside (in the test host): data set, rounds, caches, statistics
//	   │  a line for each step, over pipes
//	   ├──► bench work    native   on the test host itself
//	   ├──► bench work    bind     chroot to a recursive bind mount of /, in a mount namespace of its own
//	   ├──► bench work    ours     cntr-attach deb -- …, with --writable for workloads that write
//	   ├──► bench work    uring    the same, with FUSE over io_uring turned on
//	   └──► bench work    cntr     cntr attach LEADER -- …
//
// The worker is one static program at one path, which is the same file in all settings. It takes the time of each
// workload itself, so the start of a session is in no figure. For each workload it is started anew, with a session of
// its own, so that no figure depends on what came before: cntr gets slower the more files it has seen. A workload runs
// in all settings one right after the other, in an order that moves on each round, before the next workload has
// its turn: whatever else the computer does at the time, they all get their share of it. A ratio in the table is the
// median of the rounds' ratios.
//
// Warm means that the same thing was done once, in the same setting, just before. Cold means that sync(2) was called
// and 3 written to /proc/sys/vm/drop_caches. Inodes and names are dropped before each workload, for all settings: cntr
// keeps a descriptor for each inode that the kernel knows, and runs into the limit on open files.
//
// All that takes part runs with the highest priority, sessions with their servers included, so that other programs have
// little part in the times. What they do to the disk, and to the caches of the CPU, remains. So does a bias where others use all CPUs:
// when client and server both sleep, be it for a microsecond, another program has the CPU for up to some milliseconds, whatever its
// priority. A server with one thread, like cntr's, that its client preempts as soon as it is answered, never sleeps then; others do.
// With ordinary priorities, which is what users have, it is the other way round.
//
// Everything is generated from fixed seeds, in /srv/bench of the test host. What workloads write goes to an ext4 that is made anew for each
// (freshScratch).
//
// # Upcalls and memory
//
// The requests that reach a server are counted with the tracepoint fuse:fuse_request_send (Linux 6.10), outside
// of the time measurements; TestUpcallsPerOperation holds them to what they are. The memory of the session's server
// is taken after a walk of many files, and again after the kernel dropped its caches.
package bench
