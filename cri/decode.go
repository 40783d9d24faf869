package cri

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	"k8s.io/cri-api/pkg/errors"

	"github.com/cridproject/crid/internal/errkind"
)

// maxProblems bounds an error's text: a client that got everything wrong does
// not need to be told each time.
const maxProblems = 8

// decoder turns one request into config types. It reads the whole request and
// collects what is wrong with it, so that its author learns everything at once;
// what it returns is only of use when err is nil.
type decoder struct {
	node    Node
	systemd bool // the cgroup driver is systemd

	problems []string
	// noRRO is the field that asks for a recursive read-only mount on a node
	// that has none; "" when there is no such field.
	noRRO string
}

// reject notes that the field at path (in the words of the proto file, without
// the message's own name) is malformed or asks for what crid does not do.
func (d *decoder) reject(path, format string, args ...any) {
	d.problems = append(d.problems, path+": "+fmt.Sprintf(format, args...))
}

// check is reject for the functions below that return what is wrong, or "".
func (d *decoder) check(path, why string) {
	if why != "" {
		d.reject(path, "%s", why)
	}
}

// err is nil when the request is good, else an Invalid error that names each
// malformed field. Only a request whose single fault is the node's lack of
// recursive read-only mounts gets the text that clients look for at the start.
func (d *decoder) err() error {
	problems := d.problems
	if len(problems) == 0 {
		if d.noRRO == "" {
			return nil
		}
		return errkind.Errorf(errkind.Invalid, "%w: %s: recursive read-only mounts need Linux 5.12 or newer on this node",
			errors.ErrRROUnsupported, d.noRRO)
	}
	if more := len(problems) - maxProblems; more > 0 {
		problems = append(slices.Clone(problems[:maxProblems]), fmt.Sprintf("and %d more", more))
	}
	return errkind.Errorf(errkind.Invalid, "%s", strings.Join(problems, "; "))
}

// enum maps the value of a CRI enum; values that the API does not have are
// rejected rather than taken for the zero value.
func enum[E ~int32, T any](d *decoder, path string, v E, table map[E]T) T {
	t, ok := table[v]
	if !ok {
		d.reject(path, "unknown or unsuitable value %d", int32(v))
	}
	return t
}

// The functions below say what is wrong with a value, or "" when nothing is.

func badName(s string) string {
	if s == "" {
		return "must not be empty"
	}
	return badText(s)
}

// badText rejects what would break a line of a file or of a log.
func badText(s string) string {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return "must not contain control characters"
	}
	return ""
}

// badToken is for words that end up, separated by blanks, on a line of a file.
func badToken(s string) string {
	if s == "" {
		return "must not be empty"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "must not contain white space or control characters"
	}
	return ""
}

// badArg is for what the kernel takes as a C string.
func badArg(s string) string {
	if strings.ContainsRune(s, 0) {
		return "must not contain a NUL byte"
	}
	return ""
}

func badPath(s string) string {
	switch {
	case s == "":
		return "must not be empty"
	case !path.IsAbs(s):
		return "must be an absolute path"
	}
	return badArg(s)
}

// badID is for the IDs of things in requests. An empty one must not reach a
// search by prefix, which it would satisfy.
func badID(s string) string {
	if s == "" {
		return "must not be empty"
	}
	return badText(s)
}

// badUser is for numeric user and group IDs: the kernel's are 32 bits wide and
// the last one means "none".
func badUser(id int64) string {
	if id < 0 || id >= 1<<32-1 {
		return fmt.Sprintf("is %d, must be from 0 to %d", id, int64(1<<32-2))
	}
	return ""
}

// oneID checks the only field of many requests.
func oneID(field, id string) error {
	var d decoder
	d.check(field, badID(id))
	return d.err()
}
