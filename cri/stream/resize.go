package stream

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/sandbox"
)

// sizeMax is more than any message about a terminal's size takes, which has about
// thirty bytes. A client may send one that never ends.
const sizeMax = 4 << 10

// terminalSize is the message, in JSON.
type terminalSize struct{ Width, Height uint16 }

// sizes are the sizes of a client's terminal, of which messages tells. One that
// nobody has taken yet is replaced by the next: so messages is always read, and is
// not in the way of the client's other streams. The channel is closed with the first
// message that is none. Its goroutine ends with messages, which are the caller's to
// close.
func sizes(ctx context.Context, messages io.Reader) <-chan sandbox.Size {
	out := make(chan sandbox.Size, 1)
	go func() {
		limited := &io.LimitedReader{R: messages}
		decoder := json.NewDecoder(limited)
		for {
			limited.N = sizeMax
			var size terminalSize
			if err := decoder.Decode(&size); err != nil {
				if !errors.Is(err, io.EOF) || limited.N == 0 {
					klog.FromContext(ctx).V(4).Info("Followed a terminal's size no more", "err", err)
				}
				break
			}
			select {
			case <-out:
			default:
			}
			out <- sandbox.Size{Rows: size.Height, Columns: size.Width} // only this sends
		}
		close(out)
		_, _ = io.Copy(io.Discard, messages)
	}()
	return out
}
