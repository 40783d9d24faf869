package stream

import (
	"crypto/rand"
	"sync"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

const (
	tokenLife = time.Minute
	// tokensMax bounds the memory that URLs take which nobody uses.
	tokensMax = 1000
)

// request is what a URL is for.
type request struct {
	kind   string
	id     string // of the container or sandbox
	args   []string
	wanted Wanted
	ports  []int32
}

// tokens are the requests of the URLs given out and not used.
type tokens struct {
	now func() time.Time

	mu   sync.Mutex
	held map[string]held // +checklocks:mu
}

type held struct {
	request
	until time.Time
}

// put keeps r for a minute and returns what takes it out. Kind Unavailable when
// too many are kept.
func (t *tokens) put(r request) (string, error) {
	token := rand.Text() // 130 random bits
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, h := range t.held {
		if !now.Before(h.until) {
			delete(t.held, k)
		}
	}
	if len(t.held) >= tokensMax {
		return "", errkind.Errorf(errkind.Unavailable, "%d streaming URLs wait for their clients; try again in a minute", tokensMax)
	}
	if t.held == nil {
		t.held = map[string]held{}
	}
	t.held[token] = held{r, now.Add(tokenLife)}
	return token, nil
}

// take is the request of a token, once.
func (t *tokens) take(token string) (request, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok := t.held[token]
	delete(t.held, token)
	return h.request, ok && t.now().Before(h.until)
}
