// What the pack says in the editor, in the user's language; the words are in locales/<language>/main.json under "seqlora".
let words = {}
let language = 'en'

// Whatever a language lacks is said in English.
export async function loadWords(app, api) {
  language = app.extensionManager.setting.get('Comfy.Locale') ?? 'en'
  const all = await (await api.fetchApi('/i18n')).json()
  words = flat(all.en?.seqlora)
  if (language !== 'en') Object.assign(words, flat(all[language]?.seqlora))
}

// t('panel.step', { step: 3, steps: 80 }) fills in {step} and {steps}; an unknown key is shown as it is.
export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole)
}

// A number as the user's language writes it; options as of Intl.NumberFormat.
export function number(value, options) {
  return new Intl.NumberFormat(language, options).format(value)
}

function flat(tree, before = '', found = {}) {
  for (const [key, value] of Object.entries(tree ?? {})) {
    if (typeof value === 'string') found[before + key] = value
    else flat(value, `${before}${key}.`, found)
  }
  return found
}
