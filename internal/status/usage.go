package status

import "math"

// Unknown stands for what is not counted: the host has no such controller, or the session no scope.
const Unknown = uint64(math.MaxUint64)

// Usage is what a session has cost, its file server included.
type Usage struct {
	CPUNSec       uint64 `json:"cpu"`            // CPU time, in ns
	MemoryCurrent uint64 `json:"memory_current"` // bytes
	MemoryPeak    uint64 `json:"memory_peak"`    // bytes; Linux 5.19
	IORead        uint64 `json:"io_read"`        // bytes read from devices
	IOWritten     uint64 `json:"io_written"`     // bytes written to devices
}

// NoUsage is what is known of a session that nothing is counted for.
var NoUsage = Usage{Unknown, Unknown, Unknown, Unknown, Unknown}
