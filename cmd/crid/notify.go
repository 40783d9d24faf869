package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// notify tells systemd about crid's state, such as "READY=1". Without systemd it
// does nothing.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if rest, ok := strings.CutPrefix(path, "@"); ok {
		path = "\x00" + rest // the abstract name space
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
