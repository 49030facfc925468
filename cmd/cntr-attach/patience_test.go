//go:build integration && !vm

package main

import "time"

// runTimeout bounds what a test runs.
const runTimeout = time.Minute
