package cri

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cridproject/crid/internal/errkind"
)

// code is the whole translation of crid's kinds into gRPC's codes.
var code = [...]codes.Code{
	errkind.Other:       codes.Internal,
	errkind.Invalid:     codes.InvalidArgument,
	errkind.NotFound:    codes.NotFound,
	errkind.Exists:      codes.AlreadyExists,
	errkind.BadState:    codes.FailedPrecondition,
	errkind.Unavailable: codes.Unavailable,
	errkind.Timeout:     codes.DeadlineExceeded,
}

// pullReasons are the words at the beginning of a pull's error that kubelet makes
// the reason for which a container waits. It looks at the text without the code only
// when the code is Unknown; any other stands before the text, and hides them.
var pullReasons = []string{"RegistryUnavailable", "SignatureValidationFailed"}

// codeOf is the gRPC code of an error. A client that cancelled its call is told
// so, unless something with a kind of its own went wrong as well.
func codeOf(err error) codes.Code {
	var un *unimplementedError
	if errors.As(err, &un) {
		return codes.Unimplemented
	}
	if text := err.Error(); slices.ContainsFunc(pullReasons, func(r string) bool { return strings.HasPrefix(text, r+":") }) {
		return codes.Unknown
	}
	kind := errkind.Of(err)
	if kind == errkind.Other && errors.Is(err, context.Canceled) {
		return codes.Canceled
	}
	return code[kind]
}

// toStatus turns an error into what gRPC sends. The text stays as it is from
// its first letter, where pullReasons are.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codeOf(err), err.Error())
}

// unimplementedError is the answer of an RPC that crid does not have.
type unimplementedError struct{ rpc, reason string }

func (e *unimplementedError) Error() string {
	return e.rpc + " is not implemented by crid: " + e.reason
}
