package kubelet

import (
	"regexp"
	"strings"
)

// complaint is a line of kubelet's log that is an error or a warning.
var complaint = regexp.MustCompile(`^[EW]\d{4} `)

// expected are complaints that have nothing to do with crid, with the reason.
var expected = []struct {
	line *regexp.Regexp
	why  string
}{
	{regexp.MustCompile(`csi_plugin\.go.*standalone kubelet`), "there is no API server"},
	{regexp.MustCompile(`csi_plugin\.go.*running in standalone mode`), "there is no API server"},
	{regexp.MustCompile(`invalid capacity 0 on image filesystem`), "asked before kubelet's own cAdvisor has looked at the disks; at each start, with any runtime"},
	{regexp.MustCompile(`Skipping pod synchronization.*may not have completed yet`), "at each start, before kubelet has asked the runtime"},
	{regexp.MustCompile(`checkpoint is not found`), "the first start of a device manager"},
	{regexp.MustCompile(`no imagefs label for configured runtime`), "kubelet knows such a label for CRI-O alone"},
	{regexp.MustCompile(`conn\.go.*Error on socket receive.*use of closed network connection`), "kubelet ends a WebSocket of its own"},
	{regexp.MustCompile(`Failed to ensure process in container with oom score.*pid namespace of init process`), "of itself; on machines that hide init"},
}

// complaints are the errors and warnings of kubelet's log that are not expected.
func complaints(log string) []string {
	var found []string
lines:
	for line := range strings.Lines(log) {
		if !complaint.MatchString(line) {
			continue
		}
		for _, e := range expected {
			if e.line.MatchString(line) {
				continue lines
			}
		}
		found = append(found, strings.TrimSpace(line))
	}
	return found
}
