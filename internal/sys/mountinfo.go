package sys

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// MountInfo is one line of /proc/PID/mountinfo, see proc_pid_mountinfo(5).
// Paths and names are decoded.
type MountInfo struct {
	ID, Parent   int
	Major, Minor int    // of the device, as in stat's st_dev
	Root         string // folder of the file system that is mounted; for a namespace net:[4026531840]
	Point        string // where it is mounted
	Options      string // of this mount, comma-separated
	FSType       string
	Source       string
	SuperOptions string // of the file system, comma-separated

	Shared        int  // peer group that mounts below spread to; 0 means not shared
	Master        int  // peer group that mounts come from; 0 means not a slave
	PropagateFrom int  // nearest reachable peer group of a master that is out of sight
	Unbindable    bool // must not be bind-mounted
}

// Mounts is the mount table of the calling thread's mount namespace, in the order in
// which the kernel lists it: what is mounted over comes before what covers it.
func Mounts() ([]MountInfo, error) { return readMounts("/proc/thread-self/mountinfo") }

// MountsOf is the mount table that the process pid sees.
func MountsOf(pid int) ([]MountInfo, error) {
	return readMounts(fmt.Sprintf("/proc/%d/mountinfo", pid))
}

func readMounts(path string) ([]MountInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	defer f.Close()
	ms, err := parseMounts(f)
	if err != nil {
		return nil, fmt.Errorf("read mount table %s: %w", path, err)
	}
	return ms, nil
}

func parseMounts(r io.Reader) ([]MountInfo, error) {
	var ms []MountInfo
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // overlay mounts of many layers have long lines
	for lines.Scan() {
		m, err := parseMount(lines.Text())
		if err != nil {
			return nil, err
		}
		ms = append(ms, m)
	}
	return ms, lines.Err()
}

// parseMount: ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG ...] - FSTYPE SOURCE SUPEROPTIONS
func parseMount(line string) (MountInfo, error) {
	bad := func(what string) (MountInfo, error) {
		return MountInfo{}, fmt.Errorf("line %q: %s", line, what)
	}
	f := strings.Split(line, " ")
	sep := 6
	for sep < len(f) && f[sep] != "-" {
		sep++
	}
	if len(f) < sep+3 {
		return bad("too few fields")
	}
	m := MountInfo{
		Root: unescape(f[3]), Point: unescape(f[4]), Options: f[5],
		FSType: unescape(f[sep+1]), Source: unescape(f[sep+2]),
	}
	if len(f) > sep+3 {
		m.SuperOptions = unescape(f[sep+3])
	}
	var err error
	if m.ID, err = strconv.Atoi(f[0]); err != nil {
		return bad("mount ID is not a number")
	}
	if m.Parent, err = strconv.Atoi(f[1]); err != nil {
		return bad("parent ID is not a number")
	}
	major, minor, ok := strings.Cut(f[2], ":")
	if m.Major, err = strconv.Atoi(major); err != nil || !ok {
		return bad("device is not MAJOR:MINOR")
	}
	if m.Minor, err = strconv.Atoi(minor); err != nil {
		return bad("device is not MAJOR:MINOR")
	}
	for _, tag := range f[6:sep] {
		if err := m.tag(tag); err != nil {
			return bad(err.Error())
		}
	}
	return m, nil
}

// tag takes one optional field. Tags of later kernels are passed over.
func (m *MountInfo) tag(s string) error {
	name, value, _ := strings.Cut(s, ":")
	var to *int
	switch name {
	case "shared":
		to = &m.Shared
	case "master":
		to = &m.Master
	case "propagate_from":
		to = &m.PropagateFrom
	case "unbindable":
		m.Unbindable = true
		return nil
	default:
		return nil
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return fmt.Errorf("peer group of %q is not a number", s)
	}
	*to = n
	return nil
}

// unescape decodes \ooo, which the kernel writes for space, tab, newline,
// backslash and #.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// MountAt is the mount of a table that a path without links is on. Nothing is
// asked of any file system, so it works for one that does not answer.
func MountAt(mounts []MountInfo, path string) (at MountInfo, ok bool) {
	for _, m := range mounts {
		below := m.Point == "/" || path == m.Point || strings.HasPrefix(path, m.Point+"/")
		// What covers another comes later.
		if below && (!ok || len(m.Point) >= len(at.Point)) {
			at, ok = m, true
		}
	}
	return at, ok
}
