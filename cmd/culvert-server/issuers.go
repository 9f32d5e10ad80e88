package main

import (
	"log/slog"

	"culvert/auth"
	"culvert/auth/jwks"
	"culvert/config"
)

// keySources are the keys of the issuers of signed tokens. Those that are fetched stay
// while the configuration is loaded anew, so that they are not fetched again.
type keySources map[keySourceName]keySource

type keySourceName struct{ issuer, where string }

type keySource struct {
	auth.KeySource
	stop func()
}

// open returns the issuers of cfg with their keys, and all sources with theirs. What
// was open is taken from old, which stays as it is.
func openIssuers(cfg *config.Server, old keySources, log *slog.Logger) (issuers []auth.Issuer, sources keySources, problems config.Problems) {
	sources = make(keySources)
	for _, i := range cfg.Issuers {
		name := keySourceName{i.Issuer.Value, i.Keys.Value}
		source, ok := old[name]
		if _, isFile := source.KeySource.(auth.KeySet); !ok || isFile { // which may have changed
			keys, stop, err := jwks.Open(name.where, name.issuer, func(err error) {
				log.Warn("keys cannot be fetched", "issuer", name.issuer, "error", err)
			})
			if err != nil {
				problems = append(problems, i.Keys.Problem(err.Error(), "give a file of keys (PEM or JWKS), or the URL of a key set, as https://ISSUER/jwks.json"))
				continue
			}
			source = keySource{keys, stop}
		}
		sources[name] = source
		issuers = append(issuers, auth.Issuer{Issuer: i.Issuer.Value, Audience: i.Audience.Value, Keys: source})
	}
	return issuers, sources, problems
}

// closeBut closes the sources that keep has not.
func (s keySources) closeBut(keep keySources) {
	for name, source := range s {
		if _, ok := keep[name]; !ok {
			source.stop()
		}
	}
}
