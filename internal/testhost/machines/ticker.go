//go:build ignore

// Ticker is a program in Go, for debuggers: it counts.
package main

import "time"

var count int

func main() {
	for {
		count++
		wait(time.Second / 10)
	}
}

//go:noinline
func wait(d time.Duration) { time.Sleep(d) }
