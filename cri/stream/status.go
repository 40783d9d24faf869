package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// exitError says that a command has run to its end and with which exit code.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("command terminated with exit code %d", int(e)) }

// status is what clients read of Kubernetes' metav1.Status.
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// statusOf is what a client is told of the end.
func statusOf(err error) status {
	var exit exitError
	switch {
	case err == nil:
		return status{Status: "Success"}
	case errors.As(err, &exit):
		return status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: exit.Error(),
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, fmt.Sprint(int(exit))}}},
		}
	}
	return status{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
}

// tell tells a client, which may have gone, how its session has ended: from version
// 4 on always and in JSON, before that only of a failure and as a text.
func tell(w io.Writer, protocol string, err error) {
	switch protocol {
	case remotecommand.StreamProtocolV5Name, remotecommand.StreamProtocolV4Name, webSocketV4Base64:
		if text, merr := json.Marshal(statusOf(err)); merr == nil {
			_, _ = w.Write(text)
		}
	default:
		if err != nil {
			_, _ = io.WriteString(w, err.Error())
		}
	}
}
