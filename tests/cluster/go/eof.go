package main

import (
	"io"
	"os"
	"syscall"
)

// exitAtEOF ends the process when its standard input closes. The input is a
// pipe whose other end only the starting process holds, so that no server
// outlives it, however it ends: a killed test run leaves nothing behind. (The
// kernel's own signal for this is sent when the starting *thread* ends.)
func exitAtEOF() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		if syscall.Getpgrp() == os.Getpid() {
			_ = syscall.Kill(0, syscall.SIGKILL) // with all that it started
		}
		os.Exit(1)
	}()
}
