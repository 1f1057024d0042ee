// What is known of a training, put together from the whole that the server answers and the news that it sends.
const HISTORIES = ['losses', 'figures', 'previews']
const RUNNING = ['starting', 'waiting', 'measuring', 'training', 'saving']
const MOST_POINTS = 2000

export const running = (training) => RUNNING.includes(training.phase)

// What a training has come to, for words and signs: its phase, but that what ended is told apart by what was learned.
export function outcome({ phase, keep, verdict }) {
  if (phase !== 'finished' || !(keep || isPoor({ verdict }))) return phase
  return keep && verdict !== 'spoilt' ? 'kept' : verdict
}

// Whether it ended with a concept that is not worth using.
export const isPoor = ({ verdict }) => verdict === 'hardly' || verdict === 'spoilt'

// The state after `told`; `before` is what was known of the same training, or null.
export function followed(before, told, whole) {
  if (!before) return told
  // An answer may be older than an event that came while it was on its way.
  const stale = whole && (!running(before) || (before.phase === told.phase && before.step > told.step))
  const now = { ...(stale ? before : told) }
  for (const name of HISTORIES) now[name] = whole ? joined(told[name], before[name]) : joined(before[name], told[name])
  if (now.losses.length > MOST_POINTS) now.losses = now.losses.filter((_, i) => i % 2)
  return now
}

const stepOf = (entry) => entry?.step ?? entry?.[0] ?? -1

function joined(first, second) {
  const last = stepOf(first.at(-1))
  const later = second.filter((entry) => stepOf(entry) > last)
  return later.length ? [...first, ...later] : first
}

// [[step, mean], ...]: an exponential mean over about a thirtieth of the steps, whatever the distance between points.
export function smoothed(losses, steps) {
  const reach = Math.max(5, steps / 30)
  let mean = 0, weight = 0, before = 0
  return losses.map(([step, loss]) => {
    const kept = Math.exp((before - step) / reach)
    before = step
    mean = kept * mean + (1 - kept) * loss
    weight = kept * weight + (1 - kept)
    return [step, mean / weight]
  })
}
