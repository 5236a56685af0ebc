package vault

import (
	"context"
	"time"
)

// renewRetry is how soon a failed renewal is tried again.
const renewRetry = 10 * time.Second

// KeepToken renews the token until ctx ends, each time when half of its life is over. When
// Vault does not take the token any more, it reads the token file again: the operator may
// have put a new one there.
func (s *Sealer) KeepToken(ctx context.Context) {
	failing := false
	for {
		next, err := s.renew(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			if !failing { // once per outage, not once per try
				s.cfg.Log.Warn("vault: token not renewed", "err", err, "retry", renewRetry)
			}
			failing, next = true, renewRetry
			if err := s.loadToken(); err != nil {
				s.cfg.Log.Debug("vault: token file not read again", "err", err)
			}
		case failing:
			s.cfg.Log.Info("vault: token renewed again")
			failing = false
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// renew renews the token once, if that is possible, and says when to do it again.
func (s *Sealer) renew(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	self, err := s.api.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return 0, s.wrap(err, "look up leapcelld's token")
	}
	ttl, err := self.TokenTTL()
	if err != nil {
		return 0, err
	}
	renewable, err := self.TokenIsRenewable()
	if err != nil {
		return 0, err
	}
	if ttl == 0 { // a token that never ends
		return time.Hour, nil
	}
	if renewable {
		renewed, err := s.api.Auth().Token().RenewSelfWithContext(ctx, 0)
		if err != nil {
			return 0, s.wrap(err, "renew leapcelld's token")
		}
		if ttl, err = renewed.TokenTTL(); err != nil {
			return 0, err
		}
	}
	return max(ttl/2, time.Second), nil
}
