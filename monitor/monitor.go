// Package monitor is the contract between crid and crid-monitor, and crid's
// half of it.
//
// The monitor is one process for the node. It is the parent of every container,
// exec and PID-namespace holder, holds their stdio, writes their logs and waits
// for them. It outlives crid: after a restart crid connects to the monitor that
// runs, asks for its List and goes on.
//
// On the wire (docs/monitor-protocol.md): frames over a unix stream socket, a
// length and a JSON message each, with file descriptors as ancillary data. Any
// number of requests may be under way on one connection; replies and exits come
// in any order. Which descriptors travel is said at each type below; the
// receiver owns what it received.
//
// Crashes. If crid dies, nothing happens to containers: exits are journalled
// until they are acknowledged. If the monitor dies, containers live on without
// a parent: crid, which keeps a copy of their pidfd and stdio, starts a new
// monitor and hands them over with Adopt.
package monitor

import (
	"encoding/json"
	"os"
	"time"
)

// Version of the protocol. crid speaks to a monitor of this version and the one
// before; see docs/monitor-protocol.md for what each changed.
const Version = 1

// Hello is the first exchange on a connection.
type Hello struct {
	Version int    // of the protocol
	Build   string // of the program, for people
	PID     int    // of the monitor, in its reply
}

// Rootfs is the root file system that the monitor mounts for one container in
// its own mount namespace, and unmounts at Delete.
type Rootfs struct {
	Lower    []string // layer folders, uppermost first; at least one
	Upper    string   // writable layer; "" makes the mount read-only
	Work     string   // overlay's work folder, on the file system of Upper
	Volatile bool     // no sync of the upper layer at unmount
	// UserNS, if set, is the path of a user namespace through which owners in the
	// layers are seen. What is in Upper is owned by what they are on the node; Upper
	// itself gets its owner with the mount.
	UserNS string
}

// ImageMount is an image that the monitor mounts read-only for one container,
// for as long as it makes it: the container's own mount stays.
type ImageMount struct {
	Source  string // of the spec's mount that is to get it; a path takes its place
	Name    string // of the mount in errors
	Lower   []string
	SubPath string // file or folder in the image; "" means all of it
}

// ImageVolumeFailed begins the text of errors about image mounts; kubelet looks
// for it there.
const ImageVolumeFailed = "ImageVolumeMountFailed"

// CreateRequest makes a container up to the point where its first process waits
// to execute its program. On error nothing is left behind.
type CreateRequest struct {
	ID            string // of the container
	Rootfs        Rootfs
	Images        []ImageMount
	Spec          json.RawMessage // OCI runtime spec; root.path is filled in by the monitor
	SystemdCgroup bool            // linux.cgroupsPath is slice:prefix:name
	LogPath       string          // absolute; "" means no log
	LogRate       int64           // bytes a second that go into the log, more is dropped and the log says so; 0 means all
	TTY           bool
	Stdin         bool // keep a stdin pipe open; otherwise /dev/null
	// StdinOnce ends the container's stdin with the first client that is attached
	// to it, see AttachRequest.
	StdinOnce bool
}

// CreateReply carries these descriptors, in this order: pidfd of the first
// process; then, without a TTY, the read ends of stdout and stderr and, with
// Stdin, the write end of stdin; with a TTY the pty's master. They are crid's
// second copy: crid only keeps them, for Adopt.
type CreateReply struct {
	PID     int
	Applied Applied
}

// Applied is what the kernel has of the resources that were asked for: it rounds
// sizes to pages and writes sets of CPUs in its own way, and the monitor may not
// set each oom_score_adj. What could not be read is as asked for.
type Applied struct {
	Resources   json.RawMessage // OCI runtime spec's linux.resources without devices; nil: none were asked for
	OOMScoreAdj *int            // of the first process; nil when it was not asked for
}

// StartRequest lets the created container execute its program. It is answered
// when the program has been executed, or when that failed: an error with the
// text of the cause (such as "exec: no such file"), and an Exit follows.
type StartRequest struct{ ID string }

// ExecRequest runs one more process in a running container. It carries three
// descriptors, which become the process's stdin, stdout and stderr; with TTY it
// carries none and the reply carries the pty's master. The process gets the
// container's user, groups, capabilities, environment, cgroup and so on.
type ExecRequest struct {
	ID     string // of the container
	ExecID string // unique within the container, chosen by crid
	Args   []string
	TTY    bool
	// Rows and Columns are the terminal's size from the start; 0 is the kernel's.
	Rows, Columns uint16
}

// ExecReply says that the process runs; its end comes as an Exit with ExecID.
type ExecReply struct {
	PID int
}

// AttachRequest connects a client to the standard files of a created or running
// container. Streams names the descriptors that it carries, pipes or sockets, in
// any order: "stdin", what the container is to read; "stdout" and "stderr", what
// gets a copy of all that the container writes from now on. A terminal has no
// stderr. NotFound; BadState after the exit; Invalid for a stream that cannot be.
//
// The monitor closes its stdout and stderr when the container's have ended or its
// first process has exited, and what was written before is in them by then. The
// client ends an attachment by closing its own ends.
//
// Any number of clients may be attached, and write. When a client's stdin ends:
// with StdinOnce and no terminal the container's stdin is closed, and the client's
// stdout and stderr go on; otherwise the attachment has ended, and the container's
// stdin stays open for the next. A client's stdin that nobody reads, or reads any
// more, is closed: writing to it fails with EPIPE.
//
// With StdinOnce the first attachment with stdin makes the container's stdin the
// monitor's alone: crid closes the copy that it keeps, and List carries none. If
// the monitor dies afterwards, the container's stdin ends.
//
// The container waits for clients that are slow, but one that reads nothing for
// 10 s is detached. Its exit waits for nobody.
type AttachRequest struct {
	ID      string // of the container
	Streams []string
}

// SignalRequest sends a signal to the first process of a container, to an exec,
// or to all processes. Signalling what has exited does nothing. SIGKILL to all
// of a container that is still being made ends the making: its Create fails.
type SignalRequest struct {
	ID     string
	ExecID string // "" means the container's first process
	Signal int
	// All, with SIGKILL, means every process in the container's cgroup, or with
	// ExecID the exec and all its descendants.
	All bool
	// Wait, with All, answers when no process is left; with kind Timeout, naming
	// those that are, when some have not ended 10 s after SIGKILL.
	Wait bool
}

// ResizeRequest sets the size of a terminal.
type ResizeRequest struct {
	ID, ExecID    string
	Rows, Columns uint16
}

// ReopenLogRequest closes the log file and opens LogPath anew. It is answered
// when no more will be written to the old file. BadState unless running.
type ReopenLogRequest struct{ ID string }

// UpdateRequest changes the resources of a created or running container. What
// Resources do not name stays as it is, and so do device rules. On error the
// kernel has the values from before, unless the kind is Unavailable. BadState
// after the exit, and for a memory limit below what is in use.
type UpdateRequest struct {
	ID        string
	Resources json.RawMessage // OCI runtime spec's linux.resources; -1 lifts a limit
	// OOMScoreAdj becomes that of all processes that have the first one's, those
	// that chose their own keep it, and of later execs. nil: unchanged.
	OOMScoreAdj *int
}

// UpdateReply says what became of it.
type UpdateReply struct {
	Applied Applied
}

// DeleteRequest kills what is left of a container, waits for its cgroup to be
// empty, removes the cgroup, unmounts the root file system, closes the log and
// forgets the container. Deleting what is not known still removes the cgroup,
// state folder and mount that the ID names, and succeeds.
type DeleteRequest struct {
	ID string
	// CgroupsPath and SystemdCgroup as in the spec, for what is not known.
	CgroupsPath   string
	SystemdCgroup bool
}

// HoldRequest starts a PID namespace for a sandbox, held by a built-in init
// that reaps orphans and does nothing else. Asking again for the same ID
// answers with the one that runs.
type HoldRequest struct {
	ID            string // of the sandbox
	CgroupsPath   string // the holder's own cgroup, as in an OCI spec
	SystemdCgroup bool
	UserNS        string // path of the user namespace that is to own the PID namespace; "" means the monitor's
}

// HoldReply carries the holder's pidfd.
type HoldReply struct {
	PID int
}

// ReleaseRequest ends a holder, and with it every process of its PID namespace,
// and removes its cgroup. Releasing what is not held removes the cgroup.
type ReleaseRequest struct {
	ID            string
	CgroupsPath   string
	SystemdCgroup bool
}

// AdoptRequest hands a container that outlived its monitor to a new one. It
// carries what CreateReply or ListReply carried (pidfd first; pipes may be
// missing when they are lost). With Holder it is a sandbox's PID holder and
// carries its pidfd only.
type AdoptRequest struct {
	ID     string
	PID    int
	Holder bool
	Create CreateRequest // as it was created, without Spec
	// Started is false for a container that still waits for Start.
	Started bool
	FDs     []string // which descriptors come: "pidfd", "stdout", "stderr", "stdin", "console"
}

// ListRequest asks for all containers and holders.
type ListRequest struct{}

// ListReply carries for each item, in order, the descriptors that its FDs name.
type ListReply struct {
	Items []ListItem
}

// ListItem is one container or holder.
type ListItem struct {
	ID      string
	PID     int
	Holder  bool
	Started bool
	Exit    *Exit    // set once the first process has exited and until Delete
	FDs     []string // as in AdoptRequest
}

// AckRequest says that crid has written down the exit of a container: the
// journal entry goes.
type AckRequest struct{ ID string }

// DumpRequest asks for figures about the monitor itself.
type DumpRequest struct{}

// DumpReply is what the monitor knows of itself. Sizes in bytes.
type DumpReply struct {
	Build      string
	PID        int
	Containers int
	Execs      int
	Holders    int
	Goroutines int
	FDs        int
	HeapInUse  uint64
	LogDropped uint64 // log bytes lost because a log file could not be written
	LogLimited uint64 // log bytes dropped because of CreateRequest.LogRate

	// Of monitors before these were counted, 0.
	LogWritten        uint64 // log bytes written
	LogErrors         uint64 // writes to logs that failed
	LogLimitedRecords uint64 // as LogLimited
}

// ShutdownRequest ends a monitor that holds nothing. BadState otherwise.
type ShutdownRequest struct{}

// Exit is the end of a container's first process or of an exec. For containers
// it is sent, unasked, on every connection once, and again after each
// reconnect until acknowledged; for execs on the connection that asked.
//
// What the process wrote before it ended is in the log before Exit is sent.
type Exit struct {
	ID        string
	ExecID    string // "" for the container's first process
	Code      int    // exit code, or 128 + signal; -1 unknown (see Lost)
	At        time.Time
	OOMKilled bool // the kernel's OOM killer struck in the container's own cgroup
	Lost      bool // the monitor was not there when it ended, and the code is not known
}

// Hold is crid's copy of a container's descriptors. Nil where there is none.
type Hold struct {
	PIDFD, Stdout, Stderr, Stdin, Console *os.File
}

// Close closes all of them. Safe on nil and twice.
func (h *Hold) Close() {
	if h == nil {
		return
	}
	for _, f := range []**os.File{&h.PIDFD, &h.Stdout, &h.Stderr, &h.Stdin, &h.Console} {
		if *f != nil {
			_ = (*f).Close()
			*f = nil
		}
	}
}
