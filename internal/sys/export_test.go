package sys

import "os"

// For tests of package sys_test.
var (
	NewUserNS    = newUserNS
	SharedFolder = sharedFolder
)

// WithIDMappedBy is WithIDMapped by one of its two ways.
func WithIDMappedBy(attach bool, folders []string, userns *os.File, use func([]string) error) error {
	return onOwnThread(func() error { return withIDMapped(folders, userns, attach, use) })
}
