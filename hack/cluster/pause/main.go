// Command pause is the root process of every pod's sandbox on the development node: it holds the namespaces and does nothing.
//
// The same image cleans released volumes: `pause scrub DIR` empties DIR and opens it to every user. The controller manager
// runs it as the recycler of hostPath volumes, so that a volume is fit for its next claim without anyone's help, and no
// other image is needed for it.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "scrub" {
		if err := scrub(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "scrub:", err)
			os.Exit(1)
		}
		return
	}
	wait()
}

// wait returns on SIGINT or SIGTERM. Where containers of a pod share the process namespace this is process 1, so it also
// collects the children that others leave behind.
func wait() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// scrub removes what is in a directory but keeps the directory, which is a mount point.
func scrub(directory string) error {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(directory, entry.Name())); err != nil {
			return err
		}
	}
	if err := os.Chown(directory, 0, 0); err != nil {
		return err
	}
	// Pods run as any user, and hostPath volumes take no fsGroup.
	return os.Chmod(directory, 0o777)
}
