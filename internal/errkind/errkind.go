// Package errkind gives every error that crosses a package one of seven kinds.
//
// A kind says what the caller can do about the error; the text says what
// happened. Packages below cri return kinds, cri alone turns them into gRPC
// codes. An error without a kind is Other.
package errkind

import (
	"context"
	"errors"
	"fmt"
)

// Kind says what a caller can do about an error.
type Kind uint8

// The seven kinds. Their order is the index of tables in other packages.
const (
	Other       Kind = iota // nothing known: a bug or a broken machine
	Invalid                 // the request is wrong: asking again is no use
	NotFound                // the thing named is not there
	Exists                  // the thing to be made is there already, and is another
	BadState                // the thing is there, but its state does not allow this
	Unavailable             // something outside (registry, plugin, monitor) is not there now: try again
	Timeout                 // it took too long; it may or may not go on
)

var names = [...]string{"other", "invalid", "not found", "exists", "bad state", "unavailable", "timeout"}

// Kinds is all kinds, for tests that must cover each.
var Kinds = [...]Kind{Other, Invalid, NotFound, Exists, BadState, Unavailable, Timeout}

func (k Kind) String() string {
	if int(k) >= len(names) {
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
	return names[k]
}

// Error is an error with a kind. Its text is that of the error inside.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Errorf is fmt.Errorf with a kind; %w works.
func Errorf(k Kind, format string, args ...any) error {
	return &Error{k, fmt.Errorf(format, args...)}
}

// New gives err the kind k. nil stays nil.
func New(k Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{k, err}
}

// Of is the kind of the outermost *Error in err's tree. A context's deadline is
// Timeout; anything else without a kind is Other.
func Of(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	}
	return Other
}

// Is reports whether err has the kind k.
func Is(err error, k Kind) bool { return err != nil && Of(err) == k }
