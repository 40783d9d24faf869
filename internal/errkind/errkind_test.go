package errkind_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
)

func TestOf(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want errkind.Kind
	}{
		{"nil", nil, errkind.Other},
		{"plain", io.EOF, errkind.Other},
		{"kind", errkind.Errorf(errkind.NotFound, "no image"), errkind.NotFound},
		{"wrapped", fmt.Errorf("pull: %w", errkind.New(errkind.Unavailable, io.EOF)), errkind.Unavailable},
		{"outermost wins", errkind.New(errkind.Timeout, errkind.New(errkind.Invalid, io.EOF)), errkind.Timeout},
		{"joined", errors.Join(io.EOF, errkind.Errorf(errkind.BadState, "running")), errkind.BadState},
		{"deadline", fmt.Errorf("add: %w", context.DeadlineExceeded), errkind.Timeout},
		{"kind over deadline", errkind.New(errkind.Unavailable, context.DeadlineExceeded), errkind.Unavailable},
		{"cancelled", context.Canceled, errkind.Other},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := errkind.Of(tt.err); got != tt.want {
				t.Errorf("Of(%v) = %v, want %v", tt.err, got, tt.want)
			}
			for _, k := range errkind.Kinds {
				if got, want := errkind.Is(tt.err, k), tt.err != nil && k == tt.want; got != want {
					t.Errorf("Is(%v, %v) = %v, want %v", tt.err, k, got, want)
				}
			}
		})
	}
}

func TestErrorKeepsTextAndCause(t *testing.T) {
	err := errkind.Errorf(errkind.Invalid, "read layer %d: %w", 3, io.ErrUnexpectedEOF)
	if got, want := err.Error(), "read layer 3: unexpected EOF"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is not found in the error")
	}
	if errkind.New(errkind.Invalid, nil) != nil {
		t.Error("New(Invalid, nil) is an error, want nil")
	}
}

func TestKindNames(t *testing.T) {
	seen := map[string]bool{}
	for i, k := range errkind.Kinds {
		if int(k) != i {
			t.Errorf("Kinds[%d] = %d, want the kinds in their order", i, k)
		}
		if seen[k.String()] {
			t.Errorf("two kinds are called %q", k)
		}
		seen[k.String()] = true
	}
	if got, want := errkind.Kind(200).String(), "kind(200)"; got != want {
		t.Errorf("Kind(200).String() = %q, want %q", got, want)
	}
}
